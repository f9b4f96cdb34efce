"""Taking part in a search: the trial runner set up, and trials run in the role this process has."""

import contextlib
import gc
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Final

from keras_transfer.config import override
from keras_transfer.data.splits import manifest
from keras_transfer.devices import set_up
from keras_transfer.errors import SpecError
from keras_transfer.experiments.descriptions import describe_model
from keras_transfer.experiments.run import load_data
from keras_transfer.experiments.session import resolve_cache_mode
from keras_transfer.experiments.trial_runner import TrialRunner
from keras_transfer.experiments.tune.progress_table import TrialReporter
from keras_transfer.experiments.tune.trial_log import TrialLog
from keras_transfer.experiments.tune.tuner import (
    SearchTuner,
    hand_out_again,
    make_oracle,
    run_tuner,
)
from keras_transfer.experiments.tune.worker_roles import is_worker
from keras_transfer.models.classifier import Rebuilder
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.cache import open_cache
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.registry import read_task
from keras_transfer.tasks.task import Task
from keras_transfer.training.fitting import prepare_classifier

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds of '90s', '20m' or '1.5h'; '' is infinitely long.

    Raises:
        SpecError: it is none of these.
    """
    if not text:
        return float("inf")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or not float(match[1]):
        raise SpecError(
            "search.time_budget is no duration",
            expected="a number and its unit s, m or h, such as 20m",
            received=repr(text),
            fix="write search.time_budget=20m",
        )
    return float(match[1]) * _UNITS[match[2]]


def take_part(spec: RunSpec, run: RunFolder, *, reporter: Reporter) -> None:
    """As a worker or as the chief of a search, run trials or hand them out until all are done."""
    with open_trial_runner(spec, run, reporter=reporter) as runner:
        run_trials(runner, TrialLog(run))


@contextlib.contextmanager
def open_trial_runner(
    spec: RunSpec, run: RunFolder, *, reporter: Reporter
) -> Iterator[TrialRunner]:
    """Read and split the images of a search and check all its models before."""
    set_up(spec.devices, seed=spec.seed)
    reporter.info(f"Search folder: {run.path}")
    task, records = read_task(spec)
    _check_models(spec, task, reporter)
    run.checkpoint_folder.mkdir(exist_ok=True)
    settled = resolve_cache_mode(spec, len(records.items), reporter=reporter)
    with open_cache(settled, reporter=reporter, scratch=run.checkpoint_folder) as cache:
        begun = run if (run.path / "splits.json").is_file() else None
        data = load_data(settled, records, cache=cache, reporter=reporter, run=begun)
        states = RunFolder(run.checkpoint_folder)
        runner = TrialRunner(settled, data, cache=cache, states=states, reporter=reporter)
        if begun is None:
            # Only now: a search of too many folds is refused without leaving anything.
            run.write_json("splits.json", manifest(data.splits, data.records))
            run.write_class_names(data.records.class_names)
        yield runner


def _check_models(spec: RunSpec, task: Task, reporter: Reporter) -> None:
    """Tell missing weights and wrong stages of any proposal before any image is decoded."""
    classifier = prepare_classifier(spec, task)
    reporter.info(describe_model(spec, classifier))
    rebuild = Rebuilder()
    for field in ("model.backbone", "model.last_stage", "model.weights"):
        for value in _values(spec, field):
            prepare_classifier(override(spec, {field: value}), task, build=rebuild)
    if any(_values(spec, field) for field in ("model.backbone", "model.last_stage")):
        return  # Which stages there are depends on the trial.
    for number in range(len(spec.phases)):
        name = f"phases.{number}.unfreeze"
        for value in _values(spec, name):
            classifier.from_stage(value, field=f"search.space of {name}")


def _values(spec: RunSpec, field: str) -> Sequence[str]:
    parameter = spec.search.space.get(field)
    return (parameter.values or ()) if parameter else ()


def run_trials(runner: TrialRunner, trial_log: TrialLog) -> None:
    """Run KerasTuner's search in the role that its environment variables give this process."""
    search = runner.original.search
    if search.tuner == "grid" and not is_worker():
        # KerasTuner 1.4.8 cannot go on with a grid (its issue 1055). Begun anew it proposes the
        # same trials in the same order, and those that ended are read from the book.
        shutil.rmtree(trial_log.folder.path / "oracle", ignore_errors=True)
    oracle = make_oracle(runner.original, num_epochs=runner.spec.num_epochs)
    tuner = SearchTuner(
        oracle, runner, trial_log, watch=lambda begun: TrialReporter(trial_log, begun)
    )
    if not is_worker():
        hand_out_again(oracle)
    with _old_things_left_alone():
        run_tuner(tuner, oracle, seconds=parse_duration(search.time_budget))


@contextlib.contextmanager
def _old_things_left_alone() -> Iterator[None]:
    """Let Python look for garbage among what trials make, not among all that TensorFlow is.

    Each look takes a quarter of a second otherwise, and each trial causes some.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
