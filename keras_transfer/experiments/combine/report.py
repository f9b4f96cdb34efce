"""A combination of runs, its combination.json and combination.md, and its table."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from keras_transfer.evaluation.intervals import Z95
from keras_transfer.evaluation.results import Evaluation, Gain
from keras_transfer.experiments.combine.choice import Choice
from keras_transfer.experiments.combine.members import Members
from keras_transfer.export.saved_model.proof import Proof
from keras_transfer.reporting.numbers import fixed
from keras_transfer.reporting.reporter import TerminalReporter
from keras_transfer.reporting.tables import Table
from keras_transfer.storage.run_folder import RunFolder

REPORT_FILE: Final = "combination.json"
MARKDOWN_FILE: Final = "combination.md"
_NOTE: Final = (
    "The test split decides nothing: runs, shares and scales are chosen by the loss on validation. "
    "The best run is the first one."
)


@dataclass(frozen=True, eq=False)
class Combination:
    """What was combined, and what came of it.

    `outputs` are those of the test split, of which `test` is the evaluation. `gain` is the paired
    difference there to the first member.
    """

    how: str
    run: RunFolder
    choice: Choice
    outputs: np.ndarray
    test: Evaluation
    gain: Gain
    proof: Proof

    @property
    def members(self) -> Members:
        """The runs that were combined."""
        return self.choice.members


@dataclass(frozen=True)
class _Row:
    """The figures of a member, or of the combination; losses are means over images."""

    name: str
    is_taken: bool
    val_loss: float | None
    score: float
    interval: tuple[float, float]
    test_loss: float


def write_combination(found: Combination) -> None:
    """Write both files into the folder of the new run.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    folder = found.run
    tables = [table.markdown() for table in _tables(found)]
    lines = [f"# {folder.path.name}", describe(found), *tables, _NOTE]
    folder.write_text(MARKDOWN_FILE, "\n\n".join(lines) + "\n")
    error = Z95 * found.gain.standard_error
    content: dict[str, Any] = {
        "how": found.how,
        "metric": found.members.best.run.task.monitor.metric,
        "num_test": len(found.outputs),
        "gain": found.gain.difference,
        "gain_interval": [found.gain.difference - error, found.gain.difference + error],
        "sentence": describe(found),
        "rows": [dataclasses.asdict(row) for row in _rows(found)],
        "points": [dataclasses.asdict(point) for point in found.choice.points],
    }
    folder.write_json(REPORT_FILE, content)


def show_combination(found: Combination, terminal: TerminalReporter) -> None:
    """Print the table, its note and the sentence on what was gained."""
    for table in _tables(found):
        terminal.table(table.title, table.header, table.rows)
    terminal.info(_NOTE)
    terminal.info(describe(found))
    terminal.info(f"Run folder: {found.run.path}")


def describe(found: Combination) -> str:
    """One sentence: how the score changes from the best run."""
    monitor = found.members.best.run.task.monitor
    gain = monitor.format_gain(found.gain.difference, Z95 * found.gain.standard_error)
    return (
        f"{found.choice.title} changes {monitor.metric.replace('_', ' ')} of "
        f"{found.members.best.name} by {gain} "
        f"(95 % interval, {len(found.outputs):,} test images)."
    )


def tabulate(found: Combination) -> Table:
    """A row for each run, the best on validation first, and the combination."""
    monitor = found.members.best.run.task.monitor
    header = ["", "taken", "validation loss", monitor.label, "test loss"]
    rows = [
        [
            row.name,
            "yes" if row.is_taken else "no",
            "–" if row.val_loss is None else fixed(row.val_loss, 4),
            monitor.format_interval(row.score, row.interval),
            fixed(row.test_loss, 4),
        ]
        for row in _rows(found)
    ]
    return Table("Combination", header, rows)


def _tables(found: Combination) -> list[Table]:
    """The runs, and the candidates on a line of weights where there are some."""
    points = found.choice.points
    if not points:
        return [tabulate(found)]
    rows = [[f"{point.position:g}", fixed(point.val_loss, 4)] for point in points]
    title = "Share of the other run" if found.how == "line" else "Scale of the changes"
    return [tabulate(found), Table(title, [title.lower(), "validation loss"], rows)]


def _rows(found: Combination) -> list[_Row]:
    own = (found.how, True, found.choice.val_loss, found.outputs)
    members = [
        (member.name, member in found.choice.chosen, member.val_loss, member.test)
        for member in found.members.items
    ]
    task, values = found.members.best.run.task, found.members.test_values
    rows = []
    for name, is_taken, val_loss, outputs in (*members, own):
        headline = task.headline(values, outputs)
        loss = float(task.example_losses(values, outputs).mean())
        rows.append(_Row(name, is_taken, val_loss, headline.value, headline.interval, loss))
    return rows
