"""Writes auto.json and auto.md, and makes the table for the terminal."""

from dataclasses import asdict
from typing import Any

from keras_transfer.config import spec_to_dict
from keras_transfer.experiments.auto.search import Attempt, AutoResult
from keras_transfer.experiments.summary import show_next, show_result
from keras_transfer.reporting.numbers import fixed
from keras_transfer.reporting.reporter import TerminalReporter
from keras_transfer.reporting.tables import Table
from keras_transfer.tasks.task import Monitor

_CAPTION = (
    "Trunks and views: out of fold, and the difference to the best before with its 95 % interval "
    "over images. Fine-tuning: on the validation split, chosen by loss. * chosen"
)


def write_auto(found: AutoResult) -> None:
    """Write auto.md and auto.json into the run's folder.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    run = found.result.run
    reasons = "\n".join(f"- {one.name}: {one.reason}." for one in found.attempts)
    table = tabulate(found).markdown()
    lines = [f"# {run.path.name}", *describe(found), table, _CAPTION + ".", reasons]
    run.write_text("auto.md", "\n\n".join(lines) + "\n")
    run.write_json("auto.json", _figures(found))


def show_auto(found: AutoResult, terminal: TerminalReporter) -> None:
    """Print the run, the table of all attempts, and where the time went."""
    show_result(found.result, terminal)
    terminal.show(tabulate(found))
    for sentence in describe(found):
        terminal.info(sentence)
    path = found.result.run.path
    terminal.info(f"What was tried, and why: {path / 'auto.md'}")
    show_next(path, terminal)


def describe(found: AutoResult) -> list[str]:
    """What was chosen, and how the time was used."""
    final = found.seconds - found.search_seconds
    ended = "Ctrl-C ended the search early. " if found.was_interrupted else ""
    return [
        f"Chosen: {found.name}. {found.result.test.describe()}",
        f"{ended}{found.seconds:.0f} of {found.budget.seconds:.0f} s were used: "
        f"{found.search_seconds:.0f} s to choose, {final:.0f} s for the final run, for which "
        f"{found.reserved_seconds:.0f} s were kept.",
    ]


def tabulate(found: AutoResult) -> Table:
    """A row for every attempt, also for what was not tried."""
    monitor = found.result.classifier.task.monitor
    header = ["", monitor.label, "loss", "difference", "seconds", "predicted seconds", "result"]
    rows = [_row(attempt, monitor) for attempt in found.attempts]
    return Table("What was tried", header, rows, _CAPTION)


def _row(attempt: Attempt, monitor: Monitor) -> list[str]:
    def cell(value: float | None, digits: int) -> str:
        return "–" if value is None else fixed(value, digits)

    difference = "–"
    if attempt.difference is not None and attempt.interval is not None:
        factor, digits = (100, 1) if monitor.is_share else (1, 3)
        mean, low, high = (
            fixed(factor * value, digits, signed=True)
            for value in (attempt.difference, *attempt.interval)
        )
        difference = f"{mean}\n{low} to {high}"
    return [
        attempt.name.replace(", ", ",\n") + (" *" if attempt.is_chosen else ""),
        "–" if attempt.score is None else monitor.format_number(attempt.score),
        cell(attempt.loss, 3),
        difference,
        cell(attempt.seconds, 0),
        cell(attempt.predicted_seconds, 0),
        attempt.reason.partition(":")[0],
    ]


def _figures(found: AutoResult) -> dict[str, Any]:
    return {
        "settings": asdict(found.auto),
        "chosen": found.name,
        "spec": spec_to_dict(found.spec),
        "was_interrupted": found.was_interrupted,
        "seconds": {
            "budget": found.budget.seconds,
            "used": found.seconds,
            "search": found.search_seconds,
            "reserved": found.reserved_seconds,
        },
        "attempts": [asdict(attempt) for attempt in found.attempts],
    }
