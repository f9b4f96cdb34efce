"""What a person sees while a run goes on: plain sentences, progress bars, a closing table."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    import keras


Item = TypeVar("Item")


@dataclass(frozen=True)
class Sheet:
    """A table in words: a title, a header, rows of as many texts, and what is said below."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


class Reporter(Protocol):
    """Who is told what a run decides and how far it is."""

    def info(self, text: str) -> None:
        """Tell a decision or a finding, one sentence."""

    def progress(self, title: str) -> contextlib.AbstractContextManager[Callable[[int, int], None]]:
        """While the block runs, its value is called with (done, total)."""

    def training_progress(
        self, title: str, epochs: int, steps_per_epoch: int
    ) -> contextlib.AbstractContextManager[list["keras.callbacks.Callback"]]:
        """Callbacks that show the epochs of one phase while the block runs."""

    def live_table(self, read: Callable[[], Sheet]) -> contextlib.AbstractContextManager[None]:
        """Show what `read` returns while the block runs, about once a second."""


class SilentReporter:
    """Tells nobody: for tests and for callers with a display of their own."""

    def info(self, text: str) -> None:
        """Say nothing."""

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:  # noqa: ARG002
        """Count nothing."""
        yield lambda done, total: None  # noqa: ARG005

    @contextlib.contextmanager
    def training_progress(
        self,
        title: str,  # noqa: ARG002
        epochs: int,  # noqa: ARG002
        steps_per_epoch: int,  # noqa: ARG002
    ) -> Iterator[list["keras.callbacks.Callback"]]:
        """Watch nothing."""
        yield []

    @contextlib.contextmanager
    def live_table(self, read: Callable[[], Sheet]) -> Iterator[None]:  # noqa: ARG002
        """Show nothing."""
        yield


class TerminalReporter:
    """Tells on a terminal or in a notebook cell, with `rich`."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()

    def info(self, text: str) -> None:
        """Print one sentence with a bullet."""
        logging.getLogger("keras_transfer").info(text)
        self.console.print(f"[bold cyan]•[/] {_escaped(text)}", highlight=False)

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A bar that is gone when the block ends."""
        with self._progress() as bar:
            task = bar.add_task(title, total=None, note="")
            yield lambda done, total: bar.update(task, completed=done, total=total or None)

    @contextlib.contextmanager
    def training_progress(
        self, title: str, epochs: int, steps_per_epoch: int
    ) -> Iterator[list["keras.callbacks.Callback"]]:
        """A bar over all steps of a phase, with the last epoch's figures beside it."""
        import keras

        with self._progress() as bar:
            task = bar.add_task(title, total=epochs * steps_per_epoch, note="compiling …")
            where = {"epoch": 0}

            def begin(epoch: int, logs: Any) -> None:  # noqa: ARG001
                where["epoch"] = epoch

            def step(batch: int, logs: dict[str, float]) -> None:
                done = where["epoch"] * steps_per_epoch + batch + 1
                note = f"epoch {where['epoch'] + 1}/{epochs}  loss {logs['loss']:.3f}"
                bar.update(task, completed=done, note=note)

            def end(epoch: int, logs: dict[str, float]) -> None:
                note = f"epoch {epoch + 1}/{epochs}  loss {logs['loss']:.3f}"
                metric = next(n for n in logs if n.startswith("val_") and n != "val_loss")
                note += f"  {metric} {logs[metric]:.3f}"
                bar.update(task, completed=(epoch + 1) * steps_per_epoch, note=note)

            yield [
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=begin, on_train_batch_end=step, on_epoch_end=end
                )
            ]

    @contextlib.contextmanager
    def live_table(self, read: Callable[[], Sheet]) -> Iterator[None]:
        """A table that changes in place, and is gone when the block ends."""
        if not self._changes_in_place:
            yield
            return
        with Live(
            get_renderable=lambda: _table(read()),
            console=self.console,
            refresh_per_second=1,
            transient=True,
        ):
            yield

    @staticmethod
    def counted(items: Iterable[Item], count: Callable[[int, int], None]) -> Iterator[Item]:
        """Pass items on and count them, their total being unknown."""
        for number, item in enumerate(items, start=1):
            yield item
            count(number, 0)

    def table(
        self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = ""
    ) -> None:
        """Print a table; the first column is text, the others are figures."""
        self.console.print(_table(Sheet(title, header, rows, caption)))

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            # Into a file or a pipe they would leave nothing but empty lines.
            disable=not self._changes_in_place,
        )

    @property
    def _changes_in_place(self) -> bool:
        return self.console.is_terminal or self.console.is_jupyter


def _table(sheet: Sheet) -> Table:
    table = Table(
        title=_escaped(sheet.title),
        caption=_escaped(sheet.caption) or None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    for number, name in enumerate(sheet.header):
        # Names that do not fit are folded: cut off, two of them could be the same.
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in sheet.rows:
        table.add_row(*map(_escaped, row))
    return table


def _escaped(text: str) -> str:
    # File names may hold square brackets, which rich would read as markup.
    return text.replace("[", r"\[")
