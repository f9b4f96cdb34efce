"""Studies: one spec trained many times, for about the cost of once.

    folds=5       every image is held out once: cross-validation
    seeds=5       the same run with other seeds
    halvings=4    with all, half, a quarter … of the training images

All trials share one audit and one cache: frozen layers see every view once for the whole study.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict

from keras_transfer.data.records import Records
from keras_transfer.data.sources import read_records
from keras_transfer.data.splits import manifest
from keras_transfer.devices import set_up
from keras_transfer.devices.hosts import check_one_host
from keras_transfer.evaluation.intervals import wilson
from keras_transfer.experiments.descriptions import describe_model
from keras_transfer.experiments.run import Data, load_data
from keras_transfer.experiments.session import resolve_cache_mode
from keras_transfer.experiments.study.report import write_study
from keras_transfer.experiments.study.study import Study, TrialDone
from keras_transfer.experiments.study.trials import (
    Trial,
    TrialResult,
    plan_trials,
    pools,
    run_trial,
)
from keras_transfer.reporting.reporter import PrefixedReporter, Reporter, TerminalReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.cache import Cache, open_cache
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run, vacated_on_refusal
from keras_transfer.training.fitting import prepare_classifier
from keras_transfer.training.progress import Checkpoint, State


def run_study(
    spec: RunSpec, run: RunFolder | None = None, *, reporter: Reporter | None = None
) -> Study:
    """Run all trials that `folds`, `seeds` and `halvings` ask for, into a study's folder.

    Args:
        run: from `start_run`, new or to be resumed; by default a new one under saved_models/.
            Trials that ended before an interruption are not run again.
        reporter: who is told of decisions and progress; by default the terminal.

    Raises:
        DataError, SpecError, WeightsError: the input cannot be used as it is.
        RunError: the folder cannot be written or resumed, or training diverged.
    """
    reporter = reporter or TerminalReporter()
    run = run or start_run(spec)
    with vacated_on_refusal(run):
        return _run(spec, run, reporter)


def _run(spec: RunSpec, run: RunFolder, reporter: Reporter) -> Study:
    check_one_host(spec.devices, "a study")
    set_up(spec.devices, seed=spec.seed)
    reporter.info(f"Study folder: {run.path}")
    records = read_records(spec.data)
    _check_model(spec, records, reporter)
    run.checkpoint_folder.mkdir(exist_ok=True)
    settled = resolve_cache_mode(spec, len(records.items), reporter=reporter)
    with open_cache(settled, reporter=reporter, scratch=run.checkpoint_folder) as cache:
        begun = run if (run.path / "splits.json").is_file() else None
        data = load_data(settled, records, cache=cache, reporter=reporter, run=begun)
        trials = plan_trials(settled, data.records, data.splits.test, reporter=reporter)
        # Only now: a study of too many folds is refused without leaving anything.
        run.write_json("splits.json", manifest(data.splits, data.records))
        run.write_class_names(data.records.class_names)
        done = _run_trials(trials, run, data, cache, reporter)
        study = Study(spec, run, data.records, tuple(done))
        write_study(study)
    shutil.rmtree(run.checkpoint_folder)
    return study


def _check_model(spec: RunSpec, records: Records, reporter: Reporter) -> None:
    """Tell missing weights and wrong stages within seconds, before any image is decoded."""
    classifier = prepare_classifier(spec, records.class_names)
    reporter.info(describe_model(spec, classifier))


def _run_trials(
    trials: Sequence[Trial], run: RunFolder, data: Data, cache: Cache, reporter: Reporter
) -> list[TrialDone]:
    reporter.info(f"{len(trials)} trials, from {trials[0].name!r} to {trials[-1].name!r}.")
    done = []
    for number, (trial, pool) in enumerate(zip(trials, pools(trials), strict=True)):
        checkpoint = Checkpoint(run, f"trial-{number}")
        state = checkpoint.load()
        if state is None:
            # What all trials have in common is told once.
            teller = PrefixedReporter(reporter, trial.name) if number else reporter
            result, probabilities = run_trial(trial, data, pool, cache=cache, reporter=teller)
            held_out = {"probabilities": probabilities}
            state = State({"result": asdict(result)}, {"held_out": held_out})
            checkpoint.save(state)
        result = TrialResult(**state.numbers["result"])
        low, high = wilson(result.num_right, result.num_held_out)
        reporter.info(
            f"Trial {number + 1} of {len(trials)}, {trial.name}: {result.accuracy:.1%} "
            f"({low:.1%} to {high:.1%}) of {result.num_held_out:,} images, "
            f"{result.seconds:.0f} s."
        )
        probabilities = state.arrays["held_out"]["probabilities"]
        done.append(TrialDone(result, trial.splits.test, probabilities))
    return done
