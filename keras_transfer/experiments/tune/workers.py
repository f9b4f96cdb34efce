"""Workers of a search: the trials that this process runs, and processes that run them in parallel.

KerasTuner's chief proposes trials, and its workers train them. KerasTuner alone waits forever for a
worker that was killed; here such a worker is started again under its old name and gets the same
trial, while the others continue.
"""

import contextlib
import gc
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from keras_transfer.config import load_spec, override
from keras_transfer.devices.subprocess_call import SubprocessCall, end_with_parent, free_port
from keras_transfer.experiments.session import Session, open_session
from keras_transfer.experiments.trial_runner import TrialRunner, search_splits
from keras_transfer.experiments.tune.plan import Plan, plan_search
from keras_transfer.experiments.tune.progress_table import TrialReporter
from keras_transfer.experiments.tune.record import TrialLog
from keras_transfer.experiments.tune.tuner import (
    SearchTuner,
    make_oracle,
    retry_unfinished,
    run_tuner,
)
from keras_transfer.experiments.tune.worker_roles import is_worker
from keras_transfer.fields import parse_duration
from keras_transfer.methods.networks import prepare_classifier
from keras_transfer.models.classifier import Rebuilder
from keras_transfer.reporting.reporter import Reporter, SilentReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder

_POLL_SECONDS: Final = 0.5
_MOST_RESTARTS: Final = 5
"""Restarts of one worker: it may be killed for reasons other than its trial."""


def take_part(spec: RunSpec, run: RunFolder, *, reporter: Reporter) -> None:
    """Run trials as a worker of a search, or propose them as its chief, until all are done."""
    with open_trial_runner(spec, run, reporter=reporter) as (runner, plan):
        run_trials(runner, plan, TrialLog(run))


@contextlib.contextmanager
def open_trial_runner(
    spec: RunSpec, run: RunFolder, *, reporter: Reporter
) -> Iterator[tuple[TrialRunner, Plan]]:
    """Open the session of a search, with all its models checked, its images split and its plan.

    Raises:
        SpecError, WeightsError: a model of the space cannot be built, or no field has an effect.
        DataError: the images cannot be used, or are too few for the folds.
    """
    reporter.info(f"Search folder: {run.path}")
    with open_session(spec, reporter=reporter, run=run) as session:
        _check_models(session)
        splits, states = search_splits(session), RunFolder(run.checkpoint_folder)
        runner = TrialRunner(session, splits, states=states)
        plan = plan_search(runner)
        if not (run.path / "splits.json").is_file():
            # Only now, so that a search with too many folds fails without writing any file.
            session.write_splits()
        yield runner, plan


def _check_models(session: Session) -> None:
    """Raise for missing weights and wrong stages of any trial before any image is decoded."""
    classifier = session.build_classifier()
    spec, task = session.spec, session.task
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


def run_trials(runner: TrialRunner, plan: Plan, trial_log: TrialLog) -> None:
    """Run KerasTuner's search in the role that its environment variables give this process."""
    search = plan.spec.search
    if search.tuner == "grid" and not is_worker():
        # KerasTuner 1.4.8 cannot resume a grid (its issue 1055). Started again it proposes the
        # same trials in the same order, and results of ended trials are read from the log.
        shutil.rmtree(trial_log.folder.path / "oracle", ignore_errors=True)
    oracle = make_oracle(plan.spec, runner.session.task.monitor, num_epochs=runner.spec.num_epochs)
    tuner = SearchTuner(
        oracle,
        runner,
        plan,
        trial_log,
        make_reporter=lambda begun: TrialReporter(trial_log, begun),
    )
    if not is_worker():
        retry_unfinished(oracle)
    with _collecting_only_new_garbage():
        run_tuner(tuner, oracle, seconds=parse_duration(search.time_budget, "search.time_budget"))


@contextlib.contextmanager
def _collecting_only_new_garbage() -> Iterator[None]:
    """Exclude the objects that exist already, TensorFlow's above all, from garbage collection.

    Otherwise each collection takes a quarter of a second, and each trial causes some.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_workers(run: RunFolder, num_workers: int, *, reporter: Reporter) -> None:
    """Search with a chief and `num_workers` worker processes on this machine, until all have ended.

    Raises:
        KerasTransferError: the error that ended a worker.
        RunError: the chief was killed, or one worker was killed more often than it is restarted.
    """
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(free_port())}
    names = [f"tuner{number}" for number in range(num_workers)]
    reporter.info(f"{num_workers} workers train in parallel; their logs are in {run.path}.")
    with contextlib.ExitStack() as held:
        chief = held.enter_context(_started("chief", run, address))
        workers = {name: held.enter_context(_started(name, run, address)) for name in names}
        restarts = dict.fromkeys(names, 0)
        while workers:
            time.sleep(_POLL_SECONDS)
            if chief.ended:
                chief.result()
                return
            for name, worker in list(workers.items()):
                if not worker.ended:
                    continue
                if worker.was_killed and restarts[name] < _MOST_RESTARTS:
                    restarts[name] += 1
                    reporter.info(f"Worker {name} was killed ({worker.ending}) and starts again.")
                    workers[name] = held.enter_context(_started(name, run, address))
                else:
                    worker.result()
                    del workers[name]
        # The chief would wait for up to 20 s more, and its results are on disk already.


@contextlib.contextmanager
def _started(name: str, run: RunFolder, address: dict[str, str]) -> Iterator[SubprocessCall]:
    """A process of the search with this name, stopped with the block."""
    call = SubprocessCall(
        play_role,
        title=f"{name} of the search",
        log=run.path / f"{name}.log",
        environment={**address, "KERASTUNER_TUNER_ID": name},
        folder=str(run.path),
        parent=os.getpid(),
    )
    try:
        yield call
    finally:
        call.stop()


def play_role(folder: str, parent: int) -> None:
    """Main function of a worker process; it ends with its parent."""
    end_with_parent(parent)
    run = RunFolder(Path(folder))
    take_part(load_spec(run.spec_file), run, reporter=SilentReporter())
