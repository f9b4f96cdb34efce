"""Reporters: output of a run in progress, as sentences, progress bars and tables."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from keras_transfer.errors import printable
from keras_transfer.reporting.tables import Table

if TYPE_CHECKING:
    import keras

Count = Callable[[int, int], None]
"""Called with the number done and the total; the total is 0 where it is unknown."""
Item = TypeVar("Item")

_BULLET: Final = Text.assemble(("•", "bold cyan"), " ")
_INDENT: Final = Text("  ")
"""In front of the first line of a sentence, and of its further lines."""


class Reporter(Protocol):
    """Receives the decisions and the progress of a run."""

    def info(self, text: str) -> None:
        """Report a decision or a finding, in one sentence."""

    def progress(self, title: str) -> AbstractContextManager[Count]:
        """Report progress while the block runs, at every call of the value."""

    def training_progress(
        self, title: str, epochs: int, steps_per_epoch: int
    ) -> AbstractContextManager[list["keras.callbacks.Callback"]]:
        """Callbacks that report the epochs of one phase while the block runs."""

    def live_table(self, read: Callable[[], Table]) -> AbstractContextManager[None]:
        """Show the table that `read` returns, about once a second while the block runs."""


class SilentReporter:
    """Reports nothing: for tests and for callers with a display of their own."""

    def info(self, text: str) -> None:
        """Do nothing."""

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Count]:  # noqa: ARG002
        """A function that does nothing."""
        yield lambda done, total: None  # noqa: ARG005

    @contextlib.contextmanager
    def training_progress(
        self,
        title: str,  # noqa: ARG002
        epochs: int,  # noqa: ARG002
        steps_per_epoch: int,  # noqa: ARG002
    ) -> Iterator[list["keras.callbacks.Callback"]]:
        """No callbacks."""
        yield []

    @contextlib.contextmanager
    def live_table(self, read: Callable[[], Table]) -> Iterator[None]:  # noqa: ARG002
        """Show nothing."""
        yield


@dataclass(frozen=True)
class PrefixedReporter:
    """Shows the progress of one of several trainings under its name; sentences go to the log."""

    reporter: Reporter
    name: str

    def info(self, text: str) -> None:
        """Log one sentence."""
        logging.getLogger("keras_transfer").info(printable(f"{self.name}: {text}"))

    def progress(self, title: str) -> AbstractContextManager[Count]:
        """As the other reporter's, with the name in front."""
        return self.reporter.progress(f"{self.name}: {title}")

    def training_progress(
        self, title: str, epochs: int, steps_per_epoch: int
    ) -> AbstractContextManager[list["keras.callbacks.Callback"]]:
        """As the other reporter's, with the name in front."""
        return self.reporter.training_progress(f"{self.name}: {title}", epochs, steps_per_epoch)

    def live_table(self, read: Callable[[], Table]) -> AbstractContextManager[None]:
        """As the other reporter's."""
        return self.reporter.live_table(read)


class TerminalReporter:
    """Prints on a terminal or in a notebook cell, with `rich`."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()

    def info(self, text: str) -> None:
        """Print one sentence with a bullet, and log it."""
        text = printable(text)
        logging.getLogger("keras_transfer").info(text)
        # As a `Text`, in which names cannot be markup or names of emoji.
        lines = Text(text).wrap(self.console, self.console.width - len(_BULLET))
        for line, margin in zip(lines, chain([_BULLET], repeat(_INDENT)), strict=False):
            self.console.print(Text.assemble(margin, line), soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Count]:
        """A bar that is removed when the block ends."""
        with self._progress() as bar:
            task = bar.add_task(printable(title), total=None, note="")
            yield lambda done, total: bar.update(task, completed=done, total=total or None)

    @contextlib.contextmanager
    def training_progress(
        self, title: str, epochs: int, steps_per_epoch: int
    ) -> Iterator[list["keras.callbacks.Callback"]]:
        """A bar over all steps of a phase, with the figures of the last epoch."""
        import keras

        with self._progress() as bar:
            total = epochs * steps_per_epoch
            task = bar.add_task(printable(title), total=total, note="compiling …")
            current = {"epoch": 0}

            def begin(epoch: int, logs: Any) -> None:  # noqa: ARG001
                current["epoch"] = epoch

            def step(batch: int, logs: dict[str, float]) -> None:
                done = current["epoch"] * steps_per_epoch + batch + 1
                note = f"epoch {current['epoch'] + 1}/{epochs}  loss {logs['loss']:.3f}"
                bar.update(task, completed=done, note=note)

            def end(epoch: int, logs: dict[str, float]) -> None:
                note = f"epoch {epoch + 1}/{epochs}  loss {logs['loss']:.3f}{_validation(logs)}"
                bar.update(task, completed=(epoch + 1) * steps_per_epoch, note=note)

            yield [
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=begin, on_train_batch_end=step, on_epoch_end=end
                )
            ]

    @contextlib.contextmanager
    def live_table(self, read: Callable[[], Table]) -> Iterator[None]:
        """A table that is updated in place and removed when the block ends."""
        if not self._is_interactive:
            yield
            return
        with Live(
            get_renderable=lambda: read().rich(self.console.width),
            console=self.console,
            refresh_per_second=1,
            transient=True,
        ):
            yield

    @staticmethod
    def counted(items: Iterable[Item], count: Count) -> Iterator[Item]:
        """Yield the items and count them; their total is unknown."""
        for number, item in enumerate(items, start=1):
            yield item
            count(number, 0)

    def show(self, table: Table) -> None:
        """Print a table."""
        self.console.print(table.rich(self.console.width))

    def table(
        self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = ""
    ) -> None:
        """Print a table of these texts."""
        self.show(Table(title, header, rows, caption))

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            # In a file or a pipe they would be nothing but empty lines.
            disable=not self._is_interactive,
        )

    @property
    def _is_interactive(self) -> bool:
        return self.console.is_terminal or self.console.is_jupyter


def _validation(logs: dict[str, float]) -> str:
    """The first metric of the validation split, besides the loss."""
    for name, value in logs.items():
        if name.startswith("val_") and name != "val_loss":
            return f"  {name} {value:.3g}"
    return ""
