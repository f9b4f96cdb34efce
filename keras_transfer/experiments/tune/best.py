"""The best trial of a search: a run with its weights, and a comparison with the original spec.

The best trial is selected on validation images, so its score is too optimistic. Training it and the
original spec with other seeds shows whether the gain is larger than noise. The test split is used
once, by the best trial only.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import keras
import numpy as np
import tomli_w

from keras_transfer.config import changed_fields, override
from keras_transfer.evaluation.intervals import Z95, Interval
from keras_transfer.experiments.run import run_transfer
from keras_transfer.experiments.summary import Result
from keras_transfer.experiments.trial_runner import TrialResult, TrialRunner
from keras_transfer.experiments.tune.record import SearchTrial, higher_is_better, ranked
from keras_transfer.reporting.reporter import PrefixedReporter, Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run
from keras_transfer.tasks.task import Monitor

BEST_SPEC, WINNER = "best.toml", "winner"


@dataclass(frozen=True)
class Comparison:
    """The best trial and the original spec, both trained with the same other seeds.

    Scores are on validation, one per seed; `difference` is the mean gain in the task's
    `example_scores`, `interval` its 95 % interval over images, paired by image.
    """

    seeds: tuple[int, ...]
    winner: tuple[float, ...]
    default: tuple[float, ...]
    difference: float
    interval: Interval

    @property
    def exceeds_noise(self) -> bool:
        """Whether the whole interval of the gain is above 0."""
        return self.interval[0] > 0


@dataclass(frozen=True, eq=False)
class Winner:
    """The best trial, the original spec, and the run of the best trial.

    `training` and `default` are the results of the two, with the search's seed. `keeps_weights`:
    the run has the weights of the trial. With folds a trial has several models, and the run is
    trained again on its own split.
    """

    trial: SearchTrial
    spec: RunSpec
    training: TrialResult
    default: TrialResult
    comparison: Comparison | None
    result: Result
    keeps_weights: bool
    is_better_than_default: bool


def choose(trials: Sequence[SearchTrial], *, higher_is_better: bool) -> SearchTrial:
    """The best of the trials that trained longest: scores of shorter ones are not final.

    Args:
        trials: at least one is scored.
    """
    longest = max(trial.share for trial in trials if trial.is_scored)
    finalists = [trial for trial in trials if trial.share == longest]
    return ranked(finalists, higher_is_better=higher_is_better)[0]


def select_best(
    trials: Sequence[SearchTrial], runner: TrialRunner, run: RunFolder, *, reporter: Reporter
) -> Winner:
    """Select the best trial, compare it with the original spec, and make its run in `winner`.

    Raises:
        RunError, ExportError: as a run would.
    """
    original = runner.session.spec
    objective = original.search.objective
    is_upwards = higher_is_better(objective, runner.session.task.monitor)
    trial = choose(trials, higher_is_better=is_upwards)
    spec = runner.vary(trial.values)
    reporter.info(f"Trial {trial.name} is the best.")
    aside = PrefixedReporter(reporter, f"trial {trial.name}")
    training = runner.train(spec, reporter=aside)
    default = runner.train(runner.spec, reporter=PrefixedReporter(reporter, "the original spec"))
    comparison = None
    if original.search.refits:
        comparison = _compare(spec, runner, original.search.refits, reporter)
    best = override(spec, {"name": f"{original.name}-{WINNER}"})
    write_best_spec(run, best, trial=trial.name)
    result = _make_run(best, runner.state(spec), run, aside)
    gain = training.figures[objective] - default.figures[objective]
    return Winner(
        trial,
        best,
        training,
        default,
        comparison,
        result,
        keeps_weights=original.folds == 1,
        is_better_than_default=gain > 0 if is_upwards else gain < 0,
    )


def _compare(spec: RunSpec, runner: TrialRunner, refits: int, reporter: Reporter) -> Comparison:
    seeds = [spec.seed + 1 + number for number in range(refits)]

    def refit(of: RunSpec, name: str) -> list[TrialResult]:
        return [
            runner.train(
                override(of, {"seed": seed}),
                reporter=PrefixedReporter(reporter, f"{name}, seed {seed}"),
                predict=True,
            )
            for seed in seeds
        ]

    best, default = refit(spec, "the best trial"), refit(runner.spec, "the original spec")
    gains = _mean_scores(best) - _mean_scores(default)
    half = Z95 * float(np.std(gains, ddof=1)) / len(gains) ** 0.5
    centre = float(gains.mean())
    return Comparison(
        seeds=tuple(seeds),
        winner=tuple(result.val_score for result in best),
        default=tuple(result.val_score for result in default),
        difference=centre,
        interval=(centre - half, centre + half),
    )


def _mean_scores(results: Sequence[TrialResult]) -> np.ndarray:
    """The mean score of each image over trainings, [N]; for single labels the share correct."""
    return np.mean([result.scores for result in results if result.scores is not None], axis=0)


def write_best_spec(run: RunFolder, best: RunSpec, *, trial: str) -> None:
    """Write best.toml with all fields that differ from their defaults, for `train`."""
    head = f"# Trial {trial}: python -m pipelines.train {run.path / BEST_SPEC}\n"
    run.write_text(BEST_SPEC, head + tomli_w.dumps(changed_fields(best)))


def _make_run(best: RunSpec, state: RunFolder | None, run: RunFolder, reporter: Reporter) -> Result:
    """A run that resumes the trial's training after its last phase."""
    folder = run.path / WINNER
    shutil.rmtree(folder, ignore_errors=True)
    # Layers that Keras numbers then get the same names as in the trial.
    keras.utils.clear_session()
    winner = start_run(best, output=folder)
    shutil.copy(run.path / "splits.json", winner.path / "splits.json")
    if state and state.checkpoint_folder.is_dir():
        shutil.copytree(state.checkpoint_folder, winner.checkpoint_folder)
    return run_transfer(best, winner, reporter=reporter)


def format_range(values: Sequence[float], monitor: Monitor) -> str:
    """Mean, minimum and maximum of scores."""
    centre, low, high = map(monitor.format, (mean(values), min(values), max(values)))
    return f"{centre} ({low} to {high})"
