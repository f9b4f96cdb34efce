"""The best trial of a search: a run with its weights, and a comparison with the original spec.

The best trial is selected on validation images, so its score is too optimistic. Training it and the
original spec with other seeds shows whether the gain is larger than noise. The test split is used
once, by the best trial only.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

import keras
import numpy as np
import tomli_w

from keras_transfer.config import changed_fields, override
from keras_transfer.evaluation.intervals import Z95, Interval
from keras_transfer.experiments.run import run_transfer
from keras_transfer.experiments.summary import Result
from keras_transfer.experiments.trial_runner import TrialResult, TrialRunner
from keras_transfer.experiments.tune.effects import fields_with_effect, idle_fields
from keras_transfer.experiments.tune.plan import Plan
from keras_transfer.experiments.tune.record import (
    SearchTrial,
    describe_choice,
    higher_is_better,
    ranked,
)
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
    `example_scores`, `interval` its 95 % interval over images, paired by image. `solved` names
    those of "winner" and "default" that are solved, so that every seed gives the same result: they
    have one score, that of the search's own seed.
    """

    seeds: tuple[int, ...]
    winner: tuple[float, ...]
    default: tuple[float, ...]
    difference: float
    interval: Interval
    num_images: int
    solved: tuple[str, ...]

    @property
    def exceeds_noise(self) -> bool:
        """Whether the whole interval of the gain is above 0."""
        return self.interval[0] > 0


@dataclass(frozen=True, eq=False)
class Winner:
    """The best trial, the original spec, and the run of the best trial.

    `training` and `default` are the results of the two, with the search's seed. `keeps_weights`:
    the run has the weights of the trial. With folds a trial has several models, and the run is
    trained again on its own split. `is_default`: the best trial trains what the original spec
    trains, so there is no comparison.
    """

    trial: SearchTrial
    spec: RunSpec
    training: TrialResult
    default: TrialResult
    comparison: Comparison | None
    result: Result
    keeps_weights: bool
    is_default: bool

    @property
    def is_better_than_default(self) -> bool | None:
        """Whether its gain over the original spec exceeds noise; None if that was not measured."""
        if self.is_default:
            return False
        return self.comparison.exceeds_noise if self.comparison else None


def select_best(
    trials: Sequence[SearchTrial],
    runner: TrialRunner,
    plan: Plan,
    run: RunFolder,
    *,
    reporter: Reporter,
) -> Winner:
    """Select the best trial, compare it with the original spec, and make its run in `winner`.

    Args:
        trials: at least one is scored.

    Raises:
        RunError, ExportError: as a run would.
    """
    search, monitor = plan.spec.search, runner.session.task.monitor
    best = ranked(trials, higher_is_better=higher_is_better(search.objective, monitor))
    trial = best[0]
    spec = runner.vary(trial.values)
    reporter.info(describe_choice(best, search.objective, monitor))
    reporter.info(_describe_comparison(trials))
    aside = PrefixedReporter(reporter, f"trial {trial.name}")
    training = runner.train(spec, reporter=aside, predict=True)
    default = runner.train(
        runner.spec, reporter=PrefixedReporter(reporter, "the original spec"), predict=True
    )
    effects = [fields_with_effect(one, plan.trained) for one in (spec, runner.spec)]
    is_default = effects[0] == effects[1]
    comparison = None
    if search.refits and not is_default:
        comparison = _compare(spec, runner, plan, (training, default), reporter)
    winner = override(spec, {"name": f"{plan.spec.name}-{WINNER}"})
    write_best_spec(run, winner, trial=trial.name)
    result = _make_run(winner, runner.state(spec), run, aside)
    return Winner(
        trial,
        winner,
        training,
        default,
        comparison,
        result,
        keeps_weights=plan.spec.folds == 1,
        is_default=is_default,
    )


def _describe_comparison(trials: Sequence[SearchTrial]) -> str:
    """What follows the trials, and what one training takes by those that were trained."""
    seconds = median(trial.seconds for trial in trials if trial.is_scored and not trial.same_as)
    return (
        "It is compared with the original spec, then evaluated and exported. A trial took "
        f"{seconds:.0f} s (median); each further training takes about as long."
    )


def _compare(
    spec: RunSpec,
    runner: TrialRunner,
    plan: Plan,
    own: tuple[TrialResult, TrialResult],
    reporter: Reporter,
) -> Comparison:
    """Train the best trial and the original spec with other seeds; `own` are with the search's."""
    seeds = [spec.seed + 1 + number for number in range(plan.spec.search.refits)]
    sides = {"winner": (spec, "the best trial"), "default": (runner.spec, "the original spec")}
    solved = [side for side, (of, _) in sides.items() if "seed" in idle_fields(of, plan.trained)]
    if len(solved) == len(sides):
        seeds = []
    results: list[list[TrialResult]] = []
    for (side, (of, name)), once in zip(sides.items(), own, strict=True):
        if side in solved:
            results.append([once])
            continue
        results.append([])
        for number, seed in enumerate(seeds, start=1):
            reporter.info(f"Comparison: {name}, training {number} of {len(seeds)} …")
            results[-1].append(_train_again(of, name, seed, runner, reporter))
    best, default = results
    gains = _mean_scores(best) - _mean_scores(default)
    half = Z95 * float(np.std(gains, ddof=1)) / len(gains) ** 0.5
    centre = float(gains.mean())
    return Comparison(
        seeds=tuple(seeds),
        winner=tuple(result.val_score for result in best),
        default=tuple(result.val_score for result in default),
        difference=centre,
        interval=(centre - half, centre + half),
        num_images=len(gains),
        solved=tuple(solved),
    )


def _train_again(
    spec: RunSpec, name: str, seed: int, runner: TrialRunner, reporter: Reporter
) -> TrialResult:
    return runner.train(
        override(spec, {"seed": seed}),
        reporter=PrefixedReporter(reporter, f"{name}, seed {seed}"),
        predict=True,
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
