"""Writes distillation.json, distillation.md and distillation.png, and shows the table."""

import dataclasses
from typing import Any, Final

import numpy as np

from keras_transfer.data.records import counted
from keras_transfer.evaluation.intervals import Z95, Interval
from keras_transfer.evaluation.metrics import expected_calibration_error
from keras_transfer.experiments.contender_plot import Dot, draw_contenders
from keras_transfer.experiments.distill.comparison import Comparison, Contender
from keras_transfer.experiments.distill.settings import REPORT_FILE
from keras_transfer.experiments.speed import BATCH_SIZES
from keras_transfer.reporting.numbers import fixed, percent
from keras_transfer.reporting.reporter import TerminalReporter
from keras_transfer.reporting.tables import Table

MARKDOWN_FILE: Final = "distillation.md"
_NUM_SHOWN: Final = 6
"""Columns that fit on a terminal; the file has all."""


def write_distillation(found: Comparison) -> None:
    """Write all files, distillation.json last: it marks the comparison as complete.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    folder = found.run.folder
    lines = [f"# {folder.path.name}", describe(found), tabulate(found).markdown(), *notes(found)]
    folder.write_text(MARKDOWN_FILE, "\n\n".join(lines) + "\n")
    dots = [_dot(found, one) for one in found.contenders]
    with folder.replacing("distillation.png") as path:
        draw_contenders(
            dots,
            path,
            monitor=found.task.monitor,
            title="Teacher and students",
            headline=describe(found),
        )
    folder.write_json(REPORT_FILE, _figures(found))


def show_distillation(found: Comparison, terminal: TerminalReporter) -> None:
    """Print the columns that fit, their notes and the sentence on whether it pays."""
    whole = tabulate(found)
    rows = [row[:_NUM_SHOWN] for row in whole.rows]
    terminal.table(whole.title, whole.header[:_NUM_SHOWN], rows)
    for sentence in (*notes(found), describe(found)):
        terminal.info(sentence)
    terminal.info(f"Written to {found.run.folder.path}: {REPORT_FILE} and {MARKDOWN_FILE}")


def describe(found: Comparison) -> str:
    """One sentence: whether distillation pays."""
    gain = found.task.monitor.format_gain(found.gain, Z95 * found.gain_error)
    seeds = counted(len(found.seeds), "seed", "seeds")
    over = f"{seeds}, {len(found.values):,} test images"
    verdict = "pays" if found.pays else "does not pay here"
    return (
        f"Distillation {verdict}: it changes the student's {_score_name(found)} by {gain} (95 % "
        f"interval, {over})."
    )


def _score_name(found: Comparison) -> str:
    """What the gain is measured in: the metric where that is a mean over images."""
    is_mean = found.task.activation == "softmax"
    return found.task.monitor.metric if is_mean else "mean score of an image"


def tabulate(found: Comparison) -> Table:
    """A row for the teacher, the distilled student and the one alone."""
    times = [f"ms of {size}" for size in BATCH_SIZES]
    header = ["", found.task.monitor.label, "agrees, %", "MB", *times]
    header += ["loss", "ECE", "parameters"]
    return Table("Distillation", header, [_row(found, one) for one in found.contenders])


def notes(found: Comparison) -> list[str]:
    """What the columns mean, and the energy where it can be measured."""
    energies = [one.speed.joules for one in found.contenders[:2]]
    measured = [joules for joules in energies if joules is not None]
    energy = (
        "not measurable here"
        if len(measured) < len(energies)
        else f"{measured[0]:.3g} J for an image of the teacher, {measured[1]:.3g} J of the student"
    )
    return [
        "Means over seeds on the test split, with the 95 % interval of the images. 'agrees' is the "
        "share of images for which the decision is the teacher's; the loss is that of the task, "
        "without label smoothing; ECE the expected calibration error of classes in 15 bins; "
        "milliseconds are the median and the 95th percentile of the whole network in float32, in "
        "turns on this machine.",
        f"Energy: {energy}.",
    ]


def _row(found: Comparison, one: Contender) -> list[str]:
    score, interval = _score(found, one)
    speeds = [f"{one.speed.p50[size]:.1f}\n{one.speed.p95[size]:.1f}" for size in BATCH_SIZES]
    loss, error = _losses(found, one)
    return [
        one.name,
        found.task.monitor.format_interval(score, interval),
        percent(_agreement(found, one)),
        fixed(one.num_bytes / 1e6, 2),
        *speeds,
        fixed(loss, 3),
        "-" if error is None else fixed(error, 3),
        f"{one.num_parameters:,}",
    ]


def _score(found: Comparison, one: Contender) -> tuple[float, Interval]:
    """The mean over seeds, and the mean of the interval's ends."""
    headlines = [found.task.headline(found.values, outputs) for outputs in one.outputs]
    low, high = np.mean([headline.interval for headline in headlines], axis=0)
    return float(np.mean([headline.value for headline in headlines])), (float(low), float(high))


def _losses(found: Comparison, one: Contender) -> tuple[float, float | None]:
    """Loss and expected calibration error, means over seeds; no error but of classes."""
    losses = [found.task.example_losses(found.values, outputs).mean() for outputs in one.outputs]
    if found.task.activation != "softmax":
        return float(np.mean(losses)), None
    errors = [expected_calibration_error(found.values, outputs) for outputs in one.outputs]
    return float(np.mean(losses)), float(np.mean(errors))


def _agreement(found: Comparison, one: Contender) -> float:
    taught = found.teacher.outputs[0]
    same = [found.task.agrees(outputs, taught, margin=0.0) for outputs in one.outputs]
    return float(np.mean(same))


def _dot(found: Comparison, one: Contender) -> Dot:
    return Dot(one.name, one.speed.p50[BATCH_SIZES[0]], *_score(found, one))


def _figures(found: Comparison) -> dict[str, Any]:
    return {
        "metric": found.task.monitor.metric,
        "seeds": list(found.seeds),
        "num_test": len(found.values),
        "gain": found.gain,
        "gain_interval": [found.gain + sign * Z95 * found.gain_error for sign in (-1, 1)],
        "pays": found.pays,
        "sentence": describe(found),
        "contenders": [_contender(found, one) for one in found.contenders],
    }


def _contender(found: Comparison, one: Contender) -> dict[str, Any]:
    score, interval = _score(found, one)
    loss, error = _losses(found, one)
    return {
        "name": one.name,
        "score": score,
        "interval": interval,
        "scores": [found.task.headline(found.values, each).value for each in one.outputs],
        "agreement": _agreement(found, one),
        "loss": loss,
        "calibration_error": error,
        "num_parameters": one.num_parameters,
        "num_bytes": one.num_bytes,
        "speed": dataclasses.asdict(one.speed),
    }
