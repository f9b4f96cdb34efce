"""Writes distillation.json, distillation.md and distillation.png, and shows the table."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from keras_transfer.data.records import counted
from keras_transfer.evaluation.intervals import Z95, Interval
from keras_transfer.evaluation.metrics import expected_calibration_error
from keras_transfer.experiments.contender_plot import draw_contenders
from keras_transfer.experiments.contenders import Figures, header_of
from keras_transfer.experiments.distill.comparison import Comparison, Contender
from keras_transfer.experiments.distill.robustness import Attack
from keras_transfer.experiments.distill.settings import REPORT_FILE
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
    dots = [_measured(found, one) for one in found.contenders]
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
    """A row for each network."""
    more = ["loss", "ECE", *(["clean, %", "attacked, %"] if found.attack else [])]
    header = header_of(found.task.monitor, more)
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
    texts = [
        "Means over seeds on the test split, with the 95 % interval of the images. 'agrees' is the "
        "share of images for which the decision is the teacher's; the loss is that of the task, "
        "without label smoothing; ECE the expected calibration error of classes in 15 bins; "
        "'ms for 1' are milliseconds for one image, the others for a batch of so many: the median, "
        "and the 95th percentile below, of the whole network in float32, in turns on this machine.",
        f"Energy: {energy}.",
    ]
    return [*texts, _describe_attack(found, found.attack)] if found.attack else texts


def _describe_attack(found: Comparison, attack: Attack) -> str:
    """One sentence with the scores of all networks that were attacked."""
    options, write, scores = attack.options, found.task.monitor.format, []
    for one in found.contenders:
        for score, (low, high) in _attacked(found, one)[1:]:
            scores.append(f"{one.name} {write(score)} ({write(low)} to {write(high)})")
    return (
        f"Attacked ({len(attack.places):,} test images, each pixel changed by at most "
        f"{options.epsilon:g} grey levels in {options.steps} steps of {options.step:g}, away from "
        f"the label, against each network itself): {', '.join(scores)}. 'clean' is of the same "
        "images as they are."
    )


def _row(found: Comparison, one: Contender) -> list[str]:
    loss, error = _losses(found, one)
    more = [fixed(loss, 3), "-" if error is None else fixed(error, 3)]
    if found.attack:
        shares = [score for score, _ in _attacked(found, one)]
        more += [*map(percent, shares), *["-"] * (2 - len(shares))]
    return _measured(found, one).cells(found.task.monitor, more)


def _measured(found: Comparison, one: Contender) -> Figures:
    score, interval = _score(found, found.values, one.outputs)
    taught = found.teacher.outputs[0]
    same = [found.task.agrees(outputs, taught, margin=0.0) for outputs in one.outputs]
    return Figures(
        name=one.name,
        score=score,
        interval=interval,
        agreement=float(np.mean(same)),
        num_parameters=one.num_parameters,
        num_bytes=one.num_bytes,
        speed=one.speed,
    )


def _attacked(found: Comparison, one: Contender) -> list[tuple[float, Interval]]:
    """Scores for the images of an attack as they are and, where there are answers, attacked."""
    if not found.attack:
        return []
    places = found.attack.places
    clean = [outputs[places] for outputs in one.outputs]
    return [
        _score(found, found.values[places], outputs) for outputs in (clean, one.attacked) if outputs
    ]


def _score(
    found: Comparison, values: np.ndarray, each: Sequence[np.ndarray]
) -> tuple[float, Interval]:
    """The mean over seeds, and the mean of the interval's ends."""
    headlines = [found.task.headline(values, outputs) for outputs in each]
    low, high = np.mean([headline.interval for headline in headlines], axis=0)
    return float(np.mean([headline.value for headline in headlines])), (float(low), float(high))


def _losses(found: Comparison, one: Contender) -> tuple[float, float | None]:
    """Loss and expected calibration error, means over seeds; no error but of classes."""
    losses = [found.task.example_losses(found.values, outputs).mean() for outputs in one.outputs]
    if found.task.activation != "softmax":
        return float(np.mean(losses)), None
    errors = [expected_calibration_error(found.values, outputs) for outputs in one.outputs]
    return float(np.mean(losses)), float(np.mean(errors))


def _figures(found: Comparison) -> dict[str, Any]:
    return {
        "metric": found.task.monitor.metric,
        "seeds": list(found.seeds),
        "num_test": len(found.values),
        "gain": found.gain,
        "gain_interval": [found.gain + sign * Z95 * found.gain_error for sign in (-1, 1)],
        "pays": found.pays,
        "sentence": describe(found),
        "attack": _attack_figures(found.attack) if found.attack else None,
        "contenders": [_contender(found, one) for one in found.contenders],
    }


def _attack_figures(attack: Attack) -> dict[str, Any]:
    options = attack.options
    bounds = {name: getattr(options, name) for name in ("epsilon", "step", "steps")}
    return {"num_images": len(attack.places), **bounds}


def _contender(found: Comparison, one: Contender) -> dict[str, Any]:
    loss, error = _losses(found, one)
    scores = [found.task.headline(found.values, each).value for each in one.outputs]
    own: dict[str, Any] = {"scores": scores, "loss": loss, "calibration_error": error}
    for name, (score, interval) in zip(("clean", "attacked"), _attacked(found, one), strict=False):
        own |= {f"{name}_score": score, f"{name}_interval": interval}
    return _measured(found, one).to_dict() | own
