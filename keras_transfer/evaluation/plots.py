"""Figures of runs and studies: learning curves, confusion, views, mistakes, scores by size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, NullLocator

from keras_transfer.evaluation.intervals import Interval
from keras_transfer.reporting.figures import (
    ALARM,
    FAINT,
    GRID,
    INK,
    SHADE,
    TRAIN,
    VALIDATION,
    new_canvas,
    new_figure,
    percent_axis,
    save,
    shortened,
    styled,
)

_PANEL_INCHES = 4.6
_CHARACTER_INCHES = 0.08
_MATRIX_INCHES = 9
_MOST_CLASSES_WITH_COUNTS = 25
_MOST_PAIRS = 3
_MOST_NAMES = 100


@styled
def draw_learning_curves(
    history: Sequence[Mapping[str, Any]], file: Path, *, metric: str, is_share: bool
) -> None:
    """Loss and a metric in training and validation over all epochs, with the names of the phases.

    A single epoch, such as of a head that is solved, has bars in place of curves.

    Args:
        history: rows with `phase`, `epoch` (from 1 over all phases), `loss`, `val_loss`, the
            same of the metric, `learning_rate`, which is 0 where the weights were solved, and
            `is_best` for the epoch whose weights a phase leaves.
        file: PNG to write.
        metric: drawn in % if `is_share`.
    """
    if len(history) == 1:
        _draw_only_epoch(history[0], file, metric=metric, is_share=is_share)
        return
    figure = new_figure(11, 4.4)
    panels = figure.subplots(1, 2)
    phases = _phases(history)
    inches = _PANEL_INCHES / len(history)
    crowded = any(
        len(name) * _CHARACTER_INCHES > (end - start) * inches for name, start, end in phases
    )
    for axes, name in zip(panels, ("loss", metric), strict=True):
        _draw_curves(axes, history, name)
        _shade_phases(axes, phases, numbered=crowded)
        axes.set_title(name.replace("_", " ").capitalize(), pad=24)
    if is_share:
        panels[1].yaxis.set_major_formatter(percent_axis())
    panels[0].legend()
    if crowded:
        names = ", ".join(f"{number} {name}" for number, (name, _, _) in enumerate(phases, 1))
        figure.supxlabel(f"phases: {names}", color=FAINT, fontsize=9)
    save(figure, file)


def _draw_only_epoch(row: Mapping[str, Any], file: Path, *, metric: str, is_share: bool) -> None:
    """Bars of the loss and the metric, with their values."""
    figure = new_figure(11, 2.4)
    for axes, name in zip(figure.subplots(1, 2), ("loss", metric), strict=True):
        values = [row[f"val_{name}"], row[name]]
        bars = axes.barh(["validation", "training"], values, height=0.6)
        for bar, color in zip(bars, (VALIDATION, TRAIN), strict=True):
            bar.set_color(color)
        in_percent = is_share and name == metric
        texts = [f"{100 * value:.1f} %" if in_percent else f"{value:.3g}" for value in values]
        axes.bar_label(bars, texts, padding=4)
        axes.margins(x=0.2)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_title(name.replace("_", " ").capitalize())
    how = "after its only epoch" if row["learning_rate"] else "whose head is solved, without epochs"
    figure.supxlabel(f"phase '{shortened(row['phase'])}', {how}", color=FAINT, fontsize=9)
    save(figure, file)


def _phases(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Name, left and right edge of every phase on the axis of epochs."""
    phases = []
    for name, rows in groupby(history, key=lambda row: row["phase"]):
        epochs = [row["epoch"] for row in rows]
        phases.append((shortened(name), min(epochs) - 0.5, max(epochs) + 0.5))
    return phases


def _draw_curves(axes: Axes, history: Sequence[Mapping[str, Any]], name: str) -> None:
    epochs = [row["epoch"] for row in history]
    for column, color, text, line in (
        (name, TRAIN, "training", "o-"),
        (f"val_{name}", VALIDATION, "validation", "s--"),
    ):
        values = [row[column] for row in history]
        axes.plot(epochs, values, line, color=color, label=text, markersize=3.5, zorder=3)
    best = [(row["epoch"], row[f"val_{name}"]) for row in history if row["is_best"]]
    ring: dict[str, Any] = {
        "markerfacecolor": "none",
        "markeredgecolor": INK,
        "markersize": 9,
        "zorder": 4,
    }
    axes.plot(*zip(*best, strict=True), "o", label="best epoch", **ring)
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.grid(axis="y")


def _shade_phases(
    axes: Axes, phases: Sequence[tuple[str, float, float]], *, numbered: bool
) -> None:
    """Shade every other phase, and write the name or number above each."""
    above = axes.get_xaxis_transform()
    for number, (name, start, end) in enumerate(phases, 1):
        if number % 2:
            axes.axvspan(start, end, color=SHADE, zorder=0, linewidth=0)
        x, text = (start + end) / 2, str(number) if numbered else name
        axes.text(x, 1.02, text, transform=above, color=FAINT, fontsize=9, ha="center")


@styled
def draw_confusion(confusion: np.ndarray, class_names: Sequence[str], file: Path) -> None:
    """The confusion matrix: counts as numbers, the share of the true class as colour.

    Counts are written for up to 25 classes. Below are the pairs that are confused most often.

    Args:
        confusion: counts [C, C], rows by true class.
        class_names: C names.
        file: PNG to write.
    """
    num_classes = len(class_names)
    cell = max(2.8 / num_classes, min(0.62, _MATRIX_INCHES / num_classes))
    names_inches = min(24, max(len(name) for name in class_names)) * _CHARACTER_INCHES
    side = num_classes * cell + names_inches + 0.6
    pairs = _worst_pairs(confusion, class_names)
    figure = new_figure(side + 1.2, side + 0.5 + 0.25 * len(pairs))
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    _name_classes(axes, class_names, cell)
    if num_classes <= _MOST_CLASSES_WITH_COUNTS:
        _write_counts(axes, confusion, shares, cell)
    right, total = int(np.trace(confusion)), int(confusion.sum())
    title = f"Confusion: {right:,} of {total:,} right, {100 * right / total:.1f} %"
    axes.set_title(title, loc="center", pad=10)
    _add_scale(figure, image)
    if pairs:
        figure.supxlabel("\n".join(pairs), color=FAINT, fontsize=8)
    save(figure, file)


def _worst_pairs(confusion: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """A line for each of the pairs of a class and a wrong prediction with the most images."""
    wrong = confusion * (1 - np.eye(len(class_names), dtype=confusion.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    lines = []
    for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[row, column]:
            true, predicted = (shortened(class_names[place], 16) for place in (row, column))
            share = 100 * wrong[row, column] / confusion[row].sum()
            lines.append(f"{true} taken for {predicted}: {share:.0f} %")
    return lines


def _name_classes(axes: Axes, class_names: Sequence[str], cell: float) -> None:
    """Name as many rows and columns as can be read, in a font size that fits the cells."""
    step = -(-len(class_names) // _MOST_NAMES)
    places = range(0, len(class_names), step)
    names = [shortened(class_names[place]) for place in places]
    size = min(9, 72 * cell * step * 0.8)
    placing: dict[str, Any] = {}
    if max(map(len, names)) * _CHARACTER_INCHES > cell:
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        placing = {"rotation": 90} if cell < 0.3 else slanted
    axes.set_xticks(places, names, fontsize=size, **placing)
    axes.set_yticks(places, names, fontsize=size)
    axes.set_xlabel("predicted class", labelpad=8)
    axes.set_ylabel("true class", labelpad=8)
    axes.spines[:].set(visible=True, color=GRID)
    if step == 1:
        edges = np.arange(len(class_names) - 1) + 0.5
        axes.hlines(edges, *axes.get_xlim(), color="white", linewidth=min(1.5, 6 * cell))
        axes.vlines(edges, *axes.get_ylim(), color="white", linewidth=min(1.5, 6 * cell))


def _write_counts(axes: Axes, confusion: np.ndarray, shares: np.ndarray, cell: float) -> None:
    digits = len(f"{confusion.max():,}")
    size = min(11, 72 * cell * 0.9 / (0.7 * digits))
    for row, column in np.argwhere(confusion):
        text, color = f"{confusion[row, column]:,}", "white" if shares[row, column] > 0.5 else INK
        axes.text(column, row, text, color=color, fontsize=size, ha="center", va="center")


def _add_scale(figure: Figure, image: AxesImage) -> None:
    bar = figure.colorbar(image, ax=image.axes, shrink=0.6, aspect=24, pad=0.02)
    bar.ax.yaxis.set_major_formatter(percent_axis())
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)


_HEADROOM = 0.25
"""Free space above and below the data for numbers, as a share of its height."""


@dataclass(frozen=True)
class SizePoint:
    """The score with one number of training images; `trials` are the scores of single seeds."""

    size: int
    score: float
    interval: Interval
    trials: tuple[float, ...]


@styled
def draw_score_by_size(
    points: Sequence[SizePoint], file: Path, *, metric: str, is_share: bool, caption: str
) -> None:
    """A metric over the number of training images, on a logarithmic axis.

    Args:
        metric: what the scores are; drawn in % if `is_share`.
        caption: the meaning of points and bars.
        file: PNG to write.
    """
    points = sorted(points, key=lambda point: point.size)
    figure = new_figure(max(5.5, 2.2 + 0.9 * len(points)), 4.4)
    axes = figure.subplots()
    _draw_points(axes, points, is_share=is_share)
    _set_axes(axes, points, is_share=is_share)
    name = metric.replace("_", " ")
    axes.set_ylabel(f"test {name}")
    axes.set_title(f"{name[:1].upper()}{name[1:]} by number of labels")
    figure.supxlabel(caption, color=FAINT, fontsize=9)
    save(figure, file)


def _draw_points(axes: Axes, points: Sequence[SizePoint], *, is_share: bool) -> None:
    sizes = [point.size for point in points]
    scores = [point.score for point in points]
    lows, highs = zip(*(point.interval for point in points), strict=True)
    axes.fill_between(sizes, lows, highs, color=TRAIN, alpha=0.12, linewidth=0)
    axes.vlines(sizes, lows, highs, color=TRAIN, linewidth=1.2, alpha=0.6)
    axes.plot(sizes, scores, color=TRAIN, marker="o", markersize=6, zorder=3)
    for point in points:
        if len(point.trials) > 1:
            each = [point.size] * len(point.trials)
            axes.scatter(each, point.trials, color="white", edgecolor=TRAIN, s=14, zorder=2)
        place: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
        text = f"{100 * point.score:.1f}" if is_share else f"{point.score:.3g}"
        axes.annotate(text, (point.size, point.interval[1]), fontsize=9, **place)


def _set_axes(axes: Axes, points: Sequence[SizePoint], *, is_share: bool) -> None:
    axes.set_xscale("log", base=2)
    sizes = [point.size for point in points]
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    low = min(point.interval[0] for point in points)
    high = max(point.interval[1] for point in points)
    least = 0.02 if is_share else 0.02 * max(abs(low), abs(high))
    margin = _HEADROOM * max(high - low, least)
    axes.set_ylim(max(min(0.0, low), low - margin), high + margin)
    if is_share:
        axes.yaxis.set_major_formatter(percent_axis())
    axes.set_xlabel("training images")
    axes.grid(axis="y")


_VIEW_INCHES = 1.35
_VIEWS_HEADER_INCHES = 0.62
_MISTAKE_INCHES = (1.7, 2.25)
_MISTAKES_HEADER_INCHES = 0.45
_GAP_INCHES = 0.06
_TITLE_INCHES = 3.4
_NUM_COLUMNS = 6
_FEW_PIXELS = 64


@dataclass(frozen=True, eq=False)
class Mistake:
    """One image [S, S, 3] in 0-255, its class, and the predicted class with its probability.

    `file` is the name of its file.
    """

    pixels: np.ndarray
    label: str
    prediction: str
    confidence: float
    file: str


@styled
def draw_views(views: np.ndarray, labels: Sequence[str], file: Path) -> None:
    """A row for each image, a column for each view; the first column is the plain image.

    Args:
        views: [R, V, S, S, 3] in 0-255; column v is view v.
        labels: class name of each row.
        file: PNG to write.
    """
    num_rows, num_views = views.shape[:2]
    names = [shortened(label, 18) for label in labels]
    names_inches = 0.3 + 0.085 * max(map(len, names))
    width = max(_TITLE_INCHES, names_inches + num_views * _VIEW_INCHES)
    figure, canvas = new_canvas(width, num_rows * _VIEW_INCHES + 0.7)
    left = (width - num_views * _VIEW_INCHES + names_inches) / 2
    for column in range(num_views):
        title, color = ("plain", INK) if column == 0 else (f"view {column}", FAINT)
        middle = left + (column + 0.5) * _VIEW_INCHES
        canvas.text(middle, _VIEWS_HEADER_INCHES - 0.03, title, color=color, fontsize=10, **_ABOVE)
    for row, name in enumerate(names):
        top = _VIEWS_HEADER_INCHES + row * _VIEW_INCHES
        middle = top + _VIEW_INCHES / 2
        canvas.text(left - _GAP_INCHES, middle, name, fontsize=10, ha="right", va="center")
        for column, pixels in enumerate(views[row]):
            _show_image(canvas, pixels, left + column * _VIEW_INCHES, top, _VIEW_INCHES)
    figure.suptitle("Views as the network sees them")
    save(figure, file)


@styled
def draw_mistakes(
    mistakes: Sequence[Mistake], file: Path, *, num_wrong: int, num_examples: int
) -> None:
    """Thumbnails of wrong predictions in the given order: prediction above, truth below.

    Args:
        mistakes: those to show; may be empty.
        file: PNG to write.
        num_wrong: number of all mistakes.
        num_examples: number of all images.
    """
    num_columns = min(_NUM_COLUMNS, max(1, len(mistakes)))
    num_rows = -(-len(mistakes) // num_columns)
    across, down = _MISTAKE_INCHES
    width = max(6.0, num_columns * across + 0.2)
    figure, canvas = new_canvas(width, num_rows * down + 0.9)
    title = _headline(len(mistakes), num_wrong, num_examples)
    if mistakes:
        figure.suptitle(title)
        legend = "above each image: the predicted class; below: the true class and the file"
        figure.supxlabel(legend, color=FAINT, fontsize=9)
    else:
        figure.suptitle(title, y=0.5, va="center")
    left = (width - num_columns * across) / 2
    for number, mistake in enumerate(mistakes):
        row, column = divmod(number, num_columns)
        _show_mistake(canvas, mistake, left + column * across, _MISTAKES_HEADER_INCHES + row * down)
    save(figure, file)


def _show_mistake(canvas: Axes, mistake: Mistake, left: float, top: float) -> None:
    side, title_inches = _MISTAKE_INCHES[0], 0.2
    middle, top = left + side / 2, top + title_inches
    prediction = f"{shortened(mistake.prediction, 16)} {100 * mistake.confidence:.0f} %"
    canvas.text(middle, top - 0.03, prediction, color=ALARM, fontsize=9, **_ABOVE)
    _show_image(canvas, mistake.pixels, left, top, side)
    below = f"{shortened(mistake.label, 20)}\n{shortened(mistake.file, 24)}"
    canvas.text(middle, top + side, below, fontsize=8, ha="center", va="top")


def _headline(num_shown: int, num_wrong: int, num_examples: int) -> str:
    if num_wrong == 0:
        return f"No mistakes among {num_examples:,} images"
    wrong = f"{num_wrong:,} of {num_examples:,} images misclassified"
    return wrong if num_shown == num_wrong else f"{wrong}: the {num_shown} most confident"


_ABOVE: dict[str, Any] = {"ha": "center", "va": "baseline"}


def _show_image(canvas: Axes, pixels: np.ndarray, left: float, top: float, side: float) -> None:
    """Draw one image into a square of this place and size, in inches, with a gap around it."""
    gap = _GAP_INCHES / 2
    canvas.imshow(
        np.clip(np.round(pixels), 0, 255).astype(np.uint8),
        interpolation="nearest" if len(pixels) < _FEW_PIXELS else "antialiased",
        extent=(left + gap, left + side - gap, top + side - gap, top + gap),
        aspect="auto",
    )
