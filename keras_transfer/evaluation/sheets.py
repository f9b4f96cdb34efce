"""Sheets of pictures: views as the network sees them, and the mistakes worth looking at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from keras_transfer.evaluation.drawing import ALARM, FAINT, INK, new_figure, save, shown

_THUMBNAIL_INCHES = 1.35
_TITLE_INCHES = 3.4
_NUM_COLUMNS = 6
_FEW_PIXELS = 64


@dataclass(frozen=True, eq=False)
class Mistake:
    """One picture [S, S, 3] in 0-255, the name of its class and the name it was given."""

    pixels: np.ndarray
    label: str
    prediction: str
    confidence: float


def draw_views(views: np.ndarray, labels: Sequence[str], file: Path) -> None:
    """One row a picture, one column a view, the plain picture first.

    Args:
        views: [R, V, S, S, 3] in 0-255; column v is view v.
        labels: class name of each row.
        file: PNG to write.
    """
    num_rows, num_views = views.shape[:2]
    longest = max(len(shown(label, 18)) for label in labels)
    width = max(_TITLE_INCHES, num_views * _THUMBNAIL_INCHES + 0.3 + 0.085 * longest)
    figure = new_figure(width, num_rows * _THUMBNAIL_INCHES + 0.7, gap=0.03)
    grid = figure.subplots(num_rows, num_views, squeeze=False)
    for row, axes_row in enumerate(grid):
        for column, axes in enumerate(axes_row):
            _show_picture(axes, views[row, column])
            if row == 0:
                title = "plain" if column == 0 else f"view {column}"
                axes.set_title(title, color=INK if column == 0 else FAINT, fontsize=10)
        axes_row[0].set_ylabel(
            shown(labels[row], 18), rotation=0, ha="right", va="center", color=INK, fontsize=10
        )
    figure.suptitle("Views as the network sees them", color=INK, fontweight="bold", fontsize=12)
    save(figure, file)


def draw_mistakes(
    mistakes: Sequence[Mistake], file: Path, *, num_wrong: int, num_examples: int
) -> None:
    """Thumbnails of wrong predictions in the given order: prediction above, truth below.

    Args:
        mistakes: what to show, at most `num_wrong`; may be empty.
        file: PNG to write.
        num_wrong: mistakes in all.
        num_examples: pictures in all.
    """
    num_columns = min(_NUM_COLUMNS, max(1, len(mistakes)))
    num_rows = -(-len(mistakes) // num_columns)
    figure = new_figure(max(6.0, num_columns * 1.7 + 0.2), num_rows * 2.1 + 0.9)
    title = _headline(len(mistakes), num_wrong, num_examples)
    style: dict[str, Any] = {"color": INK, "fontweight": "bold", "fontsize": 12}
    if mistakes:
        figure.suptitle(title, **style)
        legend = "above each picture: what it was taken for; below: what it is"
        figure.supxlabel(legend, color=FAINT, fontsize=9)
        _lay_out(figure.subplots(num_rows, num_columns, squeeze=False).ravel(), mistakes)
    else:
        figure.text(0.5, 0.5, title, ha="center", va="center", **style)
    save(figure, file)


def _lay_out(grid: np.ndarray, mistakes: Sequence[Mistake]) -> None:
    for axes in grid[len(mistakes) :]:
        axes.set_axis_off()
    for axes, mistake in zip(grid, mistakes, strict=False):
        _show_picture(axes, mistake.pixels)
        prediction = f"{shown(mistake.prediction, 16)} {100 * mistake.confidence:.0f} %"
        axes.set_title(prediction, color=ALARM, fontsize=9, pad=4)
        axes.set_xlabel(shown(mistake.label, 20), color=INK, fontsize=9, labelpad=4)


def _headline(num_shown: int, num_wrong: int, num_examples: int) -> str:
    if num_wrong == 0:
        return f"No mistakes among {num_examples:,} pictures"
    wrong = f"{num_wrong:,} of {num_examples:,} pictures taken for something else"
    return wrong if num_shown == num_wrong else f"{wrong}: the {num_shown} most confident"


def _show_picture(axes: Axes, pixels: np.ndarray) -> None:
    """Fill the axes with one picture, without ticks or frame."""
    axes.imshow(
        np.clip(np.round(pixels), 0, 255).astype(np.uint8),
        interpolation="nearest" if len(pixels) < _FEW_PIXELS else "antialiased",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
