"""What a comparison of formats leaves: formats.json, formats.md, and a table for the terminal."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keras_transfer.delivery.environment import describe_environment
from keras_transfer.delivery.formats.agreement import Agreement
from keras_transfer.delivery.formats.timing import BATCH_SIZES, Latency
from keras_transfer.terminal import Sheet

JSON_FILE: Final = "formats.json"
MARKDOWN_FILE: Final = "formats.md"
PLAIN: Final = "model.export"
"""Name of the row that the others are compared with."""

_HEADER: Final = ("MB", "agree %", "max |Δp|", "accuracy %")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to answer: its size, how it agrees with the model, and how long it takes.

    `latencies` are by batch size, empty unless ways were timed, or where this one is refused.
    """

    name: str
    file: str
    megabytes: float
    agreement: Agreement | None
    refusal: str = ""
    latencies: dict[int, Latency] = field(default_factory=dict)

    def per_second(self) -> dict[int, float]:
        """Pictures a second by batch size."""
        return {size: 1000 * size / latency.p50 for size, latency in self.latencies.items()}


def write_sheet(
    rows: Sequence[Row], folder: Path, *, num_threads: int, notes: Sequence[str]
) -> None:
    """Write formats.json, and formats.md where ways were timed."""
    content = {
        "formats": [_as_json(row) for row in rows],
        "num_threads": num_threads,
        "notes": list(notes),
        "environment": describe_environment(),
    }
    text = json.dumps(content, indent=2, allow_nan=False)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    if any(row.latencies for row in rows):
        (folder / MARKDOWN_FILE).write_text(_markdown(rows, notes), encoding="utf-8")


def sheet(rows: Sequence[Row], title: str, notes: Sequence[str]) -> Sheet:
    """The table for the terminal."""
    timed = any(row.latencies for row in rows)
    header = ["format", *_HEADER, *(_timing_header() if timed else [])]
    return Sheet(title, header, [_cells(row, timed=timed) for row in rows], " ".join(notes))


def against_plain(rows: Sequence[Row]) -> list[str]:
    """Sentences on what the fastest way, and ours, take of the plain export's time."""
    plain = next((row for row in rows if row.name == PLAIN), None)
    others = [row for row in rows if row.latencies and not row.name.startswith(PLAIN)]
    if plain is None or not plain.latencies or not others:
        return []
    sentences = []
    for size in BATCH_SIZES:
        best = min(others, key=lambda row: row.latencies[size].p50)
        sentences.append(
            f"Batch {size}: {best.name} is fastest, at {_share(best, plain, size)} of the time of "
            f"{PLAIN}."
        )
    return sentences


def _share(row: Row, plain: Row, size: int) -> str:
    return f"{row.latencies[size].p50 / plain.latencies[size].p50:.2f} ×"


def _as_json(row: Row) -> dict[str, Any]:
    content = dataclasses.asdict(row)
    if row.agreement is not None and not math.isfinite(row.agreement.max_abs_difference):
        content["agreement"]["max_abs_difference"] = None
    return content | {"pictures_per_second": row.per_second()}


def _timing_header() -> list[str]:
    return [
        *(f"ms, batch {size}\np50 / p95" for size in BATCH_SIZES),
        f"pictures/s\nbatch {BATCH_SIZES[-1]}",
    ]


def _cells(row: Row, *, timed: bool) -> list[str]:
    cells = [row.name + (" (refused)" if row.refusal else ""), f"{row.megabytes:.1f}"]
    if row.agreement is None:
        cells += ["–"] * 3
    else:
        found = row.agreement
        low, high = found.accuracy_interval
        cells += [
            f"{100 * found.label_agreement:.1f}",
            f"{found.max_abs_difference:.1e}",
            f"{100 * found.accuracy:.1f} ({100 * low:.1f}–{100 * high:.1f})",
        ]
    if timed:
        for size in BATCH_SIZES:
            latency = row.latencies.get(size)
            cells.append(f"{latency.p50:.1f} / {latency.p95:.1f}" if latency else "–")
        rates = row.per_second()
        cells.append(f"{rates[BATCH_SIZES[-1]]:.1f}" if rates else "–")
    return cells


def _markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    header = ["format", *_HEADER, *(text.replace("\n", ", ") for text in _timing_header())]
    table = [header, ["---"] + ["---:"] * (len(header) - 1)]
    table += [_cells(row, timed=True) for row in rows]
    refused = [f"- {row.name} is refused: {row.refusal}" for row in rows if row.refusal]
    lines = ["# Formats", "", *(f"| {' | '.join(cells)} |" for cells in table), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes), *refused, ""])
