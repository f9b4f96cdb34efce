"""The learning curve of a study: accuracy against the number of labelled pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from keras_transfer.evaluation.drawing import (
    FAINT,
    GRID,
    INK,
    TRAIN,
    new_figure,
    percent_axis,
    save,
)
from keras_transfer.evaluation.intervals import Interval

_HEADROOM = 0.25
"""Share of the height of the data that is left free above and below it, for figures."""


@dataclass(frozen=True)
class SizePoint:
    """Accuracy with one number of training pictures; `trials` are those of the single seeds."""

    size: int
    accuracy: float
    interval: Interval
    trials: tuple[float, ...]


def draw_accuracy_by_size(points: Sequence[SizePoint], file: Path, *, caption: str) -> None:
    """Accuracy over the number of training pictures, on a logarithmic axis.

    Args:
        caption: what points and bars stand for.
        file: PNG to write.
    """
    points = sorted(points, key=lambda point: point.size)
    figure = new_figure(max(5.5, 2.2 + 0.9 * len(points)), 4.4)
    axes = figure.subplots()
    _draw_points(axes, points)
    _set_axes(axes, points)
    axes.set_title(
        "Accuracy by number of labels", loc="left", color=INK, fontsize=12, fontweight="bold"
    )
    figure.supxlabel(caption, color=FAINT, fontsize=9)
    save(figure, file)


def _draw_points(axes: Axes, points: Sequence[SizePoint]) -> None:
    sizes = [point.size for point in points]
    accuracies = [point.accuracy for point in points]
    lows, highs = zip(*(point.interval for point in points), strict=True)
    axes.fill_between(sizes, lows, highs, color=TRAIN, alpha=0.12, linewidth=0)
    axes.vlines(sizes, lows, highs, color=TRAIN, linewidth=1.2, alpha=0.6)
    axes.plot(sizes, accuracies, color=TRAIN, marker="o", markersize=6, zorder=3)
    for point in points:
        if len(point.trials) > 1:
            each = [point.size] * len(point.trials)
            axes.scatter(each, point.trials, color="white", edgecolor=TRAIN, s=14, zorder=2)
        axes.annotate(
            f"{100 * point.accuracy:.1f}",
            (point.size, point.interval[1]),
            (0, 4),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
        )


def _set_axes(axes: Axes, points: Sequence[SizePoint]) -> None:
    axes.set_xscale("log", base=2)
    sizes = [point.size for point in points]
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    low = min(point.interval[0] for point in points)
    high = max(point.interval[1] for point in points)
    room = _HEADROOM * max(high - low, 0.02)
    axes.set_ylim(max(0.0, low - room), high + room)
    axes.yaxis.set_major_formatter(percent_axis())
    axes.set_xlabel("training pictures", color=INK)
    axes.set_ylabel("test accuracy", color=INK)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
