"""Writes compression.json, compression.md and compression.png, and shows the table."""

import os
from typing import Any, Final

from keras_transfer.evaluation.intervals import Z95
from keras_transfer.experiments.compress.comparison import (
    MADE_OF,
    REPORT_FILE,
    Compression,
    Contender,
)
from keras_transfer.experiments.contender_plot import draw_pareto
from keras_transfer.experiments.contenders import Figures, header_of
from keras_transfer.experiments.speed import BATCH_SIZES
from keras_transfer.reporting.numbers import fixed
from keras_transfer.reporting.reporter import TerminalReporter
from keras_transfer.reporting.tables import Table

MARKDOWN_FILE: Final = "compression.md"
_NOTE: Final = (
    "On the test split, with the 95 % interval of the images. 'agrees' is the share of images with "
    "the same decision as the original; MB the size of the file, also after gzip. 'ms for 1' are "
    "milliseconds for one image, the others for a batch of so many: the median, and the 95th "
    "percentile below, measured in turns on this machine, in Keras in float32 and of formats in "
    "their own library."
)


def write_compression(found: Compression) -> None:
    """Write all files, compression.json last: it marks the compression as complete.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    folder = found.compressed.run.folder
    lines = [f"# {folder.path.name}", describe(found), tabulate(found).markdown(), _NOTE]
    folder.write_text(MARKDOWN_FILE, "\n\n".join(lines) + "\n")
    monitor = found.original.run.task.monitor
    chain, forms = (
        [_measured(found, one) for one in found.contenders if bool(one.form) is is_form]
        for is_form in (False, True)
    )
    with folder.replacing("compression.png") as path:
        draw_pareto(chain, forms, path, monitor=monitor, headline=describe(found))
    folder.write_json(REPORT_FILE, _figures(found))


def show_compression(found: Compression, terminal: TerminalReporter) -> None:
    """Print the table, its note and the sentence on what was gained and lost."""
    whole = tabulate(found)
    terminal.table(whole.title, whole.header, whole.rows)
    terminal.info(_NOTE)
    terminal.info(describe(found))
    path = found.compressed.run.folder.path
    terminal.info(f"Written to {path}: {REPORT_FILE} and {MARKDOWN_FILE}")


def describe(found: Compression) -> str:
    """How much faster and smaller it is, how the score changes, and which forms are slower."""
    before, after = found.original, found.compressed
    monitor = before.run.task.monitor
    one, many = (after.speed.p50[size] / before.speed.p50[size] for size in BATCH_SIZES)
    slower = [x.name for x in found.contenders if x.speed.p50[1] > before.speed.p50[1]]
    return (
        f"The compressed network takes {one:.2f} × the time for one image and {many:.2f} × for a "
        f"batch of {BATCH_SIZES[1]}, has {after.num_parameters / before.num_parameters:.2f} × the "
        f"parameters, and changes {monitor.metric.replace('_', ' ')} by "
        f"{monitor.format_gain(found.gain.difference, Z95 * found.gain.standard_error)} "
        f"(95 % interval, {len(found.values):,} test images)."
        + (f" Slower for one image than the original: {'; '.join(slower)}." if slower else "")
    )


def tabulate(found: Compression) -> Table:
    """A row for each network."""
    monitor = found.original.run.task.monitor
    rows = [
        _measured(found, one).cells(monitor, [fixed(one.num_packed_bytes / 1e6, 2)])
        for one in found.contenders
    ]
    return Table("Compression", header_of(monitor, ["MB, gzip"]), rows)


def _measured(found: Compression, one: Contender) -> Figures:
    task = one.run.task
    headline = task.headline(found.values, one.outputs)
    return Figures(
        name=one.name,
        score=headline.value,
        interval=headline.interval,
        agreement=float(task.agrees(one.outputs, found.original.outputs, margin=0).mean()),
        num_parameters=one.num_parameters,
        num_bytes=one.num_bytes,
        speed=one.speed,
    )


def _figures(found: Compression) -> dict[str, Any]:
    error = Z95 * found.gain.standard_error
    return {
        MADE_OF: os.path.relpath(found.chain[-2].run.folder.path, found.compressed.run.folder.path),
        "metric": found.original.run.task.monitor.metric,
        "num_test": len(found.values),
        "gain": found.gain.difference,
        "gain_interval": [found.gain.difference - error, found.gain.difference + error],
        "sentence": describe(found),
        "contenders": [_contender(found, one) for one in found.contenders],
    }


def _contender(found: Compression, one: Contender) -> dict[str, Any]:
    own = {"form": one.form, "num_packed_bytes": one.num_packed_bytes}
    return _measured(found, one).to_dict() | own
