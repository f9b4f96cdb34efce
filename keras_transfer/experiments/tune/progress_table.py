"""Progress of a search: a sentence for each ended trial, a table of the best and running trials.

All data is read from the trial log, so that trials may run in any process.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import keras

from keras_transfer.data.records import counted
from keras_transfer.experiments.tune.plan import Plan
from keras_transfer.experiments.tune.record import (
    SearchTrial,
    StartedTrial,
    TrialLog,
    higher_is_better,
    ranked,
    shown,
)
from keras_transfer.reporting.reporter import Reporter, SilentReporter
from keras_transfer.reporting.tables import Table
from keras_transfer.specs import RunSpec
from keras_transfer.tasks.task import Monitor

_NUM_BEST: Final = 3
_SECONDS: Final = 1.0
"""Between two readings of the trial log."""


@contextlib.contextmanager
def live_progress_table(
    trial_log: TrialLog, plan: Plan, monitor: Monitor, reporter: Reporter, *, num_workers: int
) -> Iterator[None]:
    """Report every trial that ends while the block runs, and show the table of the search."""
    known = {trial.name for trial in trial_log.ended()}
    new: list[SearchTrial] = []
    stopped = threading.Event()

    def report() -> None:
        for trial in trial_log.ended():
            if trial.name not in known:
                known.add(trial.name)
                new.append(trial)
                left = describe_left(new, plan, num_ended=len(known), num_workers=num_workers)
                reporter.info(describe_trial(trial, monitor) + left)

    def keep_reporting() -> None:
        while not stopped.wait(_SECONDS):
            report()

    thread = threading.Thread(target=keep_reporting, daemon=True)
    with reporter.live_table(lambda: _read(trial_log, plan.spec, monitor)):
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
            report()


def describe_trial(trial: SearchTrial, monitor: Monitor) -> str:
    """The result of one trial, in one sentence."""
    values = describe_values(trial)
    if trial.same_as:
        return f"Trial {trial.name} trains the same as trial {trial.same_as} ({values})."
    if not trial.is_scored or trial.val_score is None:
        return f"Trial {trial.name} failed ({values}): {trial.cause.splitlines()[0]}"
    return (
        f"Trial {trial.name}: validation {monitor.metric.replace('_', ' ')} "
        f"{monitor.format(trial.val_score)}, loss {trial.val_loss:.3f}, "
        f"{counted(trial.epochs, 'epoch', 'epochs')} in {trial.seconds:.1f} s ({values})."
    )


def describe_left(
    new: Sequence[SearchTrial], plan: Plan, *, num_ended: int, num_workers: int
) -> str:
    """About how long the other trials will take, by those that have ended; '' if unknown.

    Args:
        new: those that have ended in this process, in order; the first also computes features.
    """
    timed = [trial.seconds for trial in new if not trial.same_as]
    if plan.num_trials is None or not timed or num_ended >= plan.num_trials:
        return ""
    left = plan.num_trials - num_ended
    seconds = left * median(timed[1:] or timed) / num_workers
    about = "About" if timed[1:] else "By this trial, which also computed features, about"
    return f" {about} {seconds:.0f} s for {counted(left, 'more trial', 'more trials')}."


def describe_values(trial: SearchTrial) -> str:
    """The values of a trial, written as overrides."""
    return ", ".join(f"{name}={shown(value)}" for name, value in trial.values.items())


def progress_table(
    title: str,
    names: Sequence[str],
    best: Sequence[SearchTrial],
    running: Sequence[tuple[StartedTrial, str]] = (),
    *,
    monitor: Monitor,
    caption: str,
) -> Table:
    """A column for each trial, and a row for each parameter and metric."""
    columns = [
        [
            *_cells(trial.values, names),
            monitor.format_number(trial.val_score or 0),
            f"{trial.val_loss:.3f}",
            f"{trial.epochs}",
            f"{trial.seconds:.1f}",
        ]
        for trial in best
    ]
    columns += [
        [*_cells(started.values, names), "…", "…", progress or "building", "…"]
        for started, progress in running
    ]
    labels = [*names, f"validation{', %' if monitor.is_share else ''}", "loss", "epochs", "seconds"]
    rows = [[label, *cells] for label, *cells in zip(labels, *columns, strict=True)]
    header = ["trial", *(trial.name for trial in best), *(started.name for started, _ in running)]
    return Table(title, header, rows, caption)


def _read(trial_log: TrialLog, spec: RunSpec, monitor: Monitor) -> Table:
    ended, running = trial_log.ended(), trial_log.running()
    is_upwards = higher_is_better(spec.search.objective, monitor)
    best = ranked(ended, higher_is_better=is_upwards)[:_NUM_BEST]
    failed = sum(not trial.is_scored for trial in ended)
    caption = f"{len(ended)} trials done, {failed} of them failed; shown: the best and the running"
    names = list(spec.search.space)
    title = f"Search {trial_log.folder.path}"
    return progress_table(title, names, best, running, monitor=monitor, caption=caption)


def _cells(values: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [shown(values[name]) if name in values else "" for name in names]


@dataclass(frozen=True)
class TrialReporter(SilentReporter):
    """Writes the progress of a trial to the trial log; its sentences go to the log file."""

    trial_log: TrialLog
    begun: StartedTrial

    def info(self, text: str) -> None:
        """Log one sentence."""
        logging.getLogger("keras_transfer").info(f"trial {self.begun.name}: {text}")

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Write the count about once per second."""
        written = [time.monotonic()]

        def count(done: int, total: int) -> None:
            if time.monotonic() - written[0] >= _SECONDS:
                written[0] = time.monotonic()
                self.trial_log.note(self.begun.name, f"{title} {done:,}/{total:,}")

        yield count

    @contextlib.contextmanager
    def training_progress(
        self,
        title: str,
        epochs: int,
        steps_per_epoch: int,  # noqa: ARG002
    ) -> Iterator[list[keras.callbacks.Callback]]:
        """A callback that writes every epoch."""

        def end(epoch: int, logs: Any) -> None:  # noqa: ARG001
            self.trial_log.note(self.begun.name, f"{title} {epoch + 1}/{epochs}")

        yield [keras.callbacks.LambdaCallback(on_epoch_end=end)]
