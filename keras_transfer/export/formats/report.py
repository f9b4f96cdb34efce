"""Writes formats.json and formats.md, and builds the table of formats for the terminal."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keras_transfer.export.formats.agreement import BATCH_SIZES, Agreement, Latency
from keras_transfer.reporting.numbers import percent, percent_range
from keras_transfer.reporting.tables import Table
from keras_transfer.storage.run_folder import describe_environment

JSON_FILE: Final = "formats.json"
MARKDOWN_FILE: Final = "formats.md"
PLAIN: Final = "model.export"
"""Name of the row that the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant of the model: its size, agreement with the model, and latencies.

    `latencies` are by batch size; empty if nothing was timed or this variant is refused.
    """

    name: str
    file: str
    megabytes: float
    agreement: Agreement | None
    refusal: str = ""
    latencies: dict[int, Latency] = field(default_factory=dict)

    def per_second(self) -> dict[int, float]:
        """Images per second by batch size."""
        return {size: 1000 * size / latency.p50 for size, latency in self.latencies.items()}


def write_comparison(
    rows: Sequence[Row], folder: Path, *, num_threads: int, notes: Sequence[str]
) -> None:
    """Write formats.json, and formats.md where variants were timed."""
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


def tabulate(rows: Sequence[Row], title: str, notes: Sequence[str]) -> Table:
    """The table for a terminal of 80 columns; the files have more columns."""
    timed = any(row.latencies for row in rows)
    sizes = (BATCH_SIZES[0], BATCH_SIZES[-1])
    header = ["format", "MB", "agree", _metric(rows)]
    if timed:
        header += [*(f"ms for {size}" for size in sizes), "img/s"]
    cells = [
        _folded(_cells(row, sizes if timed else ()), refused=bool(row.refusal)) for row in rows
    ]
    legend = (
        "Predictions that agree in %, largest |Δ output| below; "
        f"{_metric(rows)}{' in %' if _is_share(rows) else ''}, its 95 % interval below; "
        "milliseconds: median, 95th percentile below."
    )
    return Table(title, header, cells, " ".join([legend, *notes] if timed else notes))


def against_plain(rows: Sequence[Row]) -> list[str]:
    """Times of the fastest variant and of the SavedModel, relative to Keras's own export."""
    plain = next((row for row in rows if row.name == PLAIN), None)
    others = [row for row in rows if row.latencies and not row.name.startswith(PLAIN)]
    if plain is None or not plain.latencies or not others:
        return []
    sentences = []
    for size in BATCH_SIZES:
        best = min(others, key=lambda row: row.latencies[size].p50)
        shares = f"{_share(best, plain, size)} the time of {PLAIN}"
        saved_model = next((row for row in others if row.name == "SavedModel"), None)
        if saved_model is not None and saved_model is not best:
            shares += f"; SavedModel {_share(saved_model, plain, size)}"
        sentences.append(f"Batches of {size}: {best.name} is fastest, {shares}.")
    slower = [row.name for row in others if row.latencies[1].p50 > plain.latencies[1].p50]
    if slower:
        sentences.append(f"Slower for one image than {PLAIN}: {', '.join(slower)}.")
    return sentences


def _share(row: Row, plain: Row, size: int) -> str:
    return f"{row.latencies[size].p50 / plain.latencies[size].p50:.2f} ×"


def _as_json(row: Row) -> dict[str, Any]:
    content = dataclasses.asdict(row)
    if row.agreement is not None and not math.isfinite(row.agreement.max_abs_difference):
        content["agreement"]["max_abs_difference"] = None
    return content | {"images_per_second": row.per_second()}


def _cells(row: Row, sizes: Sequence[int]) -> list[str]:
    """Name, size, agreement and score; where variants were timed, latencies and images/s."""
    found = row.agreement
    cells = [row.name, f"{row.megabytes:.1f}", *["–"] * 3]
    if found is not None:
        cells[2:] = [
            percent(found.label_agreement),
            f"{found.max_abs_difference:.1e}",
            _score(found),
        ]
    for size in sizes:
        latency = row.latencies.get(size)
        cells.append(f"{latency.p50:.1f} / {latency.p95:.1f}" if latency else "–")
    if sizes:
        rates = row.per_second()
        cells.append(f"{rates[sizes[-1]]:.0f}" if rates else "–")
    return cells


def _score(found: Agreement) -> str:
    if found.is_share:
        return f"{percent(found.score)} ({percent_range(*found.score_interval)})"
    low, high = found.score_interval
    return f"{found.score:.4g} ({low:.4g}–{high:.4g})"


def _metric(rows: Sequence[Row]) -> str:
    """The metric of the task, as in the first row that was compared."""
    found = next((row.agreement for row in rows if row.agreement), None)
    return found.metric.replace("_", " ") if found else "score"


def _is_share(rows: Sequence[Row]) -> bool:
    return any(row.agreement and row.agreement.is_share for row in rows)


def _folded(cells: list[str], *, refused: bool) -> list[str]:
    """The same table with the less important figures on a second line."""
    name, size, agree, difference, *figures = (
        cell.replace(" (", "\n").replace(" / ", "\n").rstrip(")") for cell in cells
    )
    name = name.replace(" ", "\n")
    return [f"{name}\nrefused" if refused else name, size, f"{agree}\n{difference}", *figures]


def _markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    metric = f"{_metric(rows)}, %" if _is_share(rows) else _metric(rows)
    header = ["format", "MB", "predictions that agree, %", "max abs Δ output", metric]
    header += [f"ms for {size}, p50 / p95" for size in BATCH_SIZES]
    header.append(f"images/s in batches of {BATCH_SIZES[-1]}")
    table = Table("Formats", header, [_cells(row, BATCH_SIZES) for row in rows])
    refused = [f"- {row.name} is refused: {row.refusal}" for row in rows if row.refusal]
    lines = [f"# {table.title}", "", table.markdown(), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes), *refused, ""])
