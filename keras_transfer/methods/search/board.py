"""What a person sees while a search goes on: a sentence a trial, the best and the running ones.

Everything shown is read from the book, so that it does not matter which process trains.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import keras

from keras_transfer.methods.search.book import Begun, Book
from keras_transfer.methods.search.record import SearchTrial, ranked
from keras_transfer.specs import RunSpec
from keras_transfer.terminal import Narrator, Sheet, Silent

_NUM_BEST: Final = 5
_SECONDS: Final = 1.0
"""Between two looks into the book."""


@contextlib.contextmanager
def watching_book(book: Book, spec: RunSpec, narrator: Narrator) -> Iterator[None]:
    """Tell of every trial that ends while the block runs, and show the state of the search."""
    known = {trial.name for trial in book.ended()}
    over = threading.Event()

    def tell() -> None:
        for trial in book.ended():
            if trial.name not in known:
                known.add(trial.name)
                narrator.say(describe_trial(trial))

    def keep_telling() -> None:
        while not over.wait(_SECONDS):
            tell()

    thread = threading.Thread(target=keep_telling, daemon=True)
    with narrator.showing(lambda: _read(book, spec)):
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            tell()


def describe_trial(trial: SearchTrial) -> str:
    """How one trial ended, in one sentence."""
    values = ", ".join(f"{name}={shown(value)}" for name, value in trial.values.items())
    if not trial.is_scored or trial.val_accuracy is None:
        return f"Trial {trial.name} failed ({values}): {trial.cause.splitlines()[0]}"
    return (
        f"Trial {trial.name}: validation accuracy {trial.val_accuracy:.1%}, log loss "
        f"{trial.val_loss:.3f}, {trial.epochs} epochs in {trial.seconds:.1f} s ({values})."
    )


def shown(value: Any) -> str:
    """A value of the space as people write it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _read(book: Book, spec: RunSpec) -> Sheet:
    ended, running = book.ended(), book.running()
    best = ranked(ended, higher_is_better=spec.search.objective == "val_accuracy")[:_NUM_BEST]
    names = list(spec.search.space)
    header = ["trial", *abbreviated(names), "epochs", "accuracy", "log loss"]
    rows = [[t.name, *_cells(t.values, names), f"{t.epochs}", *_figures(t)] for t in best]
    rows += [
        [begun.name, *_cells(begun.values, names), progress or "building", "…", "…"]
        for begun, progress in running
    ]
    failed = sum(not trial.is_scored for trial in ended)
    caption = f"{len(ended)} trials done, {failed} of them failed; above the best and the running"
    return Sheet(f"Search {book.folder.path}", header, rows, caption)


def abbreviated(names: Sequence[str]) -> list[str]:
    """Last parts of dotted names, as many as it takes to tell them apart, free to be wrapped."""
    parts = [name.replace("_", " ").split(".") for name in names]
    lasts = [part[-1] for part in parts]
    return [part[-1] if lasts.count(part[-1]) == 1 else ".".join(part[-2:]) for part in parts]


def _cells(values: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [shown(values[name]) if name in values else "" for name in names]


def _figures(trial: SearchTrial) -> list[str]:
    return [f"{trial.val_accuracy or 0:.1%}", f"{trial.val_loss or 0:.3f}"]


@dataclass(frozen=True)
class TrialNarrator(Silent):
    """Notes in the book how far a trial is; what it says goes to the log alone."""

    book: Book
    begun: Begun

    def say(self, text: str) -> None:
        """Log one sentence."""
        logging.getLogger("keras_transfer").info(f"trial {self.begun.name}: {text}")

    @contextlib.contextmanager
    def counting(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Notes the count about once a second."""
        noted = [time.monotonic()]

        def count(done: int, total: int) -> None:
            if time.monotonic() - noted[0] >= _SECONDS:
                noted[0] = time.monotonic()
                self.book.note(self.begun.name, f"{title} {done:,}/{total:,}")

        yield count

    @contextlib.contextmanager
    def watching(
        self,
        title: str,
        epochs: int,
        steps_per_epoch: int,  # noqa: ARG002
    ) -> Iterator[list[keras.callbacks.Callback]]:
        """A callback that notes every epoch."""

        def end(epoch: int, logs: Any) -> None:  # noqa: ARG001
            self.book.note(self.begun.name, f"{title} {epoch + 1}/{epochs}")

        yield [keras.callbacks.LambdaCallback(on_epoch_end=end)]
