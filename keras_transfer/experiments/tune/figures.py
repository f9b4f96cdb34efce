"""A search at a glance: every trial as a line through its values, and scores by each parameter."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from keras_transfer.experiments.tune.axes import (
    SHADES,
    Axis,
    axis_of,
    places,
    quiet,
    score_axis,
    shade,
)
from keras_transfer.experiments.tune.record import CHOICE, Search, SearchTrial
from keras_transfer.reporting.figures import (
    ALARM,
    FAINT,
    INK,
    VALIDATION,
    broken,
    inline_svg,
    new_figure,
    shown,
)

_WIDTH = 12.0
_AXIS_INCHES = 1.15
_PANELS_IN_A_ROW = 4
_STRIP = 0.16
"""Width of the coloured strip of scores; the distance of two axes is 1."""


def draw_parallel(search: Search) -> str:
    """Parallel coordinates as SVG: an axis a parameter, the last one the score, a line a trial.

    Lines have the colour of their score, the winner lies on top; trials without a score are grey
    and dashed and end before the last axis.
    """
    axes_of_values = [axis_of(search, name) for name in search.scales]
    scores = score_axis(search)
    # The worst first: the better a trial, the less it is hidden by others.
    trials = [*search.unscored, *reversed(search.scored)]
    ys = np.stack(
        [*(places(axis, trials) for axis in axes_of_values), _score_places(scores, trials)]
    )
    figure = new_figure(_width(len(ys)), 5.4)
    axes = figure.subplots()
    for trial, line in sorted(zip(trials, ys.T, strict=True), key=lambda p: _is_winner(search, p)):
        _draw_line(axes, line, trial, shade(scores, trial.result) if trial.is_scored else FAINT)
        if trial.name == search.winner:
            _draw_winner(axes, line, f"{trial.name}: {scores.text(trial.result)}")
    for x, axis in enumerate([*axes_of_values, scores]):
        _draw_axis(axes, x, axis, is_score=axis is scores)
    axes.set_xlim(-0.5, len(ys) - 1 + 0.62)
    axes.set_ylim(-0.02, 1.02)
    axes.set_axis_off()
    return inline_svg(figure, "parallel", description="Values and score of every trial, as lines")


def _width(num_axes: int) -> float:
    """In inches: wider than the page where there are many axes, narrower where there are few."""
    return max(_AXIS_INCHES * num_axes, min(_WIDTH, 1.5 + 1.75 * num_axes))


def _is_winner(search: Search, pair: tuple[SearchTrial, np.ndarray]) -> bool:
    return pair[0].name == search.winner


def _score_places(axis: Axis, trials: Sequence[SearchTrial]) -> np.ndarray:
    return np.array([axis.place(trial.result) if trial.is_scored else np.nan for trial in trials])


def _draw_line(axes: Axes, ys: np.ndarray, trial: SearchTrial, colour: str) -> None:
    width, alpha, style = (1.3, 0.85, "solid") if trial.is_scored else (1.0, 0.55, (0, (4, 3)))
    curve = _swung(ys)
    axes.add_patch(
        PathPatch(
            curve,
            fill=False,
            edgecolor=colour,
            linewidth=width,
            alpha=alpha,
            linestyle=style,
            zorder=2 if trial.is_scored else 1,
        )
    )


def _draw_winner(axes: Axes, ys: np.ndarray, text: str) -> None:
    axes.add_patch(PathPatch(_swung(ys), fill=False, edgecolor="white", linewidth=5, zorder=3))
    axes.add_patch(PathPatch(_swung(ys), fill=False, edgecolor=VALIDATION, linewidth=2.8, zorder=3))
    axes.scatter(np.arange(len(ys)), ys, s=26, color=VALIDATION, edgecolor="white", zorder=6)
    x, y = len(ys) - 1 + _STRIP, ys[-1]
    axes.text(
        x + 0.04, y, shown(text), color=VALIDATION, fontsize=9, fontweight="bold", va="center"
    )


def _swung(ys: np.ndarray) -> Path:
    """A curve from axis to axis that is level at each: easier to follow than a bent line.

    Values that are missing leave a gap.
    """
    points: list[tuple[float, float]] = []
    codes: list[Any] = []
    for x, (start, end) in enumerate(pairwise(ys)):
        if not np.isnan([start, end]).any():
            points += [(x, start), (x + 0.5, start), (x + 0.5, end), (x + 1, end)]
            codes += [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    return Path(points or [(0, 0)], codes or [Path.MOVETO])


def _draw_axis(axes: Axes, x: float, axis: Axis, *, is_score: bool) -> None:
    """The line, or the coloured strip, of an axis, its name above it and its ticks beside it."""
    if is_score:
        _draw_strip(axes, x)
    else:
        axes.plot([x, x], [0, 1], color=INK, linewidth=1, zorder=4)
    behind = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.6}
    for y, text in axis.ticks:
        axes.plot([x - 0.025, x], [y, y], color=INK, linewidth=1, zorder=4)
        axes.text(
            x - 0.05,
            y,
            text,
            color=INK,
            fontsize=8,
            ha="right",
            va="center",
            bbox=behind,
            zorder=5,
        )
    axes.text(
        x,
        1.05,
        broken(axis.name),
        color=INK,
        fontsize=8.5,
        fontweight="bold" if is_score else "normal",
        ha="center",
        va="bottom",
    )


def _draw_strip(axes: Axes, x: float) -> None:
    steps = 40
    for step in range(steps):
        colour = SHADES(step / (steps - 1))
        place = (x, step / steps)
        axes.add_patch(Rectangle(place, _STRIP, 1 / steps, facecolor=colour, edgecolor=colour))


def draw_panels(search: Search) -> str:
    """Score against each parameter as SVG, one panel a parameter.

    The fewer epochs a trial had, the smaller and fainter it is. Crosses at the bottom are trials
    without a score.
    """
    names = list(search.scales)
    columns = min(_PANELS_IN_A_ROW, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(3 * columns, 2.55 * rows, gap=0.1)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    scores = score_axis(search)
    for index, (axes, name) in enumerate(zip(panels, names, strict=False)):
        _draw_panel(axes, search, axis_of(search, name))
        ticks, texts = zip(*scores.ticks, strict=True)
        axes.set_yticks(ticks, texts)
        axes.set_ylim(-0.1, 1.06)
        if index % columns == 0:
            axes.set_ylabel(broken(scores.name), color=INK, fontsize=8.5)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return inline_svg(figure, "panels", description="Score against each parameter")


def _draw_panel(axes: Axes, search: Search, axis: Axis) -> None:
    trials = list(reversed(search.scored))
    scores = score_axis(search)
    share = np.array([trial.epochs for trial in trials], float)
    share /= max(share.max(), 1)
    xs, ys = places(axis, trials), _score_places(scores, trials)
    colours = [
        to_rgba(shade(scores, trial.result), 0.5 + 0.45 * part)
        for trial, part in zip(trials, share, strict=True)
    ]
    axes.scatter(xs, ys, s=8 + 34 * share, c=colours, linewidth=0, zorder=2)
    for trial, x, y in zip(trials, xs, ys, strict=True):
        if trial.name == search.winner:
            axes.scatter([x], [y], s=90, color=VALIDATION, edgecolor="white", zorder=4)
    failed = places(axis, search.unscored)
    axes.scatter(failed, np.full(len(failed), -0.05), s=16, marker="x", color=ALARM, zorder=3)
    quiet(axes, grid="y")
    _name_values(axes, axis)


def _name_values(axes: Axes, axis: Axis) -> None:
    ticks, texts = zip(*axis.ticks, strict=True)
    crowded = sum(map(len, texts)) + 2 * len(texts) > 36
    is_slanted = crowded and axis.scale == CHOICE
    axes.set_xticks(
        ticks,
        texts,
        rotation=35 if is_slanted else 0,
        ha="right" if is_slanted else "center",
        rotation_mode="anchor" if is_slanted else "default",
    )
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(broken(axis.name, 36), color=INK, fontsize=9)
