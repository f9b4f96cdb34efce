"""Figures of a search, as SVG: trials as lines, scores by parameter, importances, timeline."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from keras_transfer.experiments.tune.axes import (
    SHADES,
    Axis,
    axis_of,
    positions,
    score_axis,
    shade,
)
from keras_transfer.experiments.tune.importance import EPOCHS, Importance
from keras_transfer.experiments.tune.record import CHOICE, Search, SearchTrial, best_so_far
from keras_transfer.reporting.figures import (
    ALARM,
    FAINT,
    INK,
    TRAIN,
    VALIDATION,
    inline_svg,
    new_figure,
    shortened,
    styled,
    wrapped,
)

_WIDTH = 12.0
_AXIS_INCHES = 1.15
_PANELS_IN_A_ROW = 4
_STRIP = 0.16
"""Width of the coloured strip of scores; the distance of two axes is 1."""
_CURVE_INCHES, _ROW_INCHES = 2.2, 0.42
_CHARACTER_INCHES = 0.075
_LIGHT = 0.68
"""Position on the axis of scores below which colours are too light for white letters."""
_TICKS = 8.5
_PALE = "#b9cde6"


@styled
def draw_parallel(search: Search) -> str:
    """Parallel coordinates: an axis for each parameter and for the score, a line for each trial.

    Lines have the colour of their score, the best is drawn on top; trials without a score are grey
    and dashed and end before the last axis.
    """
    scores = score_axis(search)
    axes_of_values = [axis_of(search, name) for name in search.scales]
    # The worst first: the better a trial, the less it is covered by others.
    trials = [*search.unscored, *reversed(search.scored)]
    ys = np.stack(
        [*(positions(axis, trials) for axis in axes_of_values), _scores_of(scores, trials)]
    )
    # Wider than the page where there are many axes, narrower where there are few.
    width = max(_AXIS_INCHES * len(ys), min(_WIDTH, 1.5 + 1.75 * len(ys)))
    figure = new_figure(width, 5.4)
    axes = figure.subplots()
    for trial, line in zip(trials, ys.T, strict=True):
        if trial.name == search.winner:
            _draw_winner(axes, line, f"{trial.name}: {scores.text(trial.result)}")
        elif trial.is_scored:
            colour = shade(scores, trial.result)
            _draw_curve(axes, line, edgecolor=colour, linewidth=1.3, alpha=0.85, zorder=2)
        else:
            style = {"edgecolor": FAINT, "linestyle": (0, (4, 3)), "alpha": 0.55, "zorder": 1}
            _draw_curve(axes, line, linewidth=1, **style)
    for x, axis in enumerate([*axes_of_values, scores]):
        _draw_axis(axes, x, axis, is_score=axis is scores)
    axes.set_xlim(-0.5, len(ys) - 1 + 0.62)
    axes.set_ylim(-0.02, 1.02)
    axes.set_axis_off()
    return inline_svg(figure, "parallel", description="Values and score of every trial, as lines")


def _scores_of(axis: Axis, trials: Sequence[SearchTrial]) -> np.ndarray:
    return np.array(
        [axis.position(trial.result) if trial.is_scored else np.nan for trial in trials]
    )


def _draw_curve(axes: Axes, ys: np.ndarray, **style: Any) -> None:
    """A curve that is level at every axis: easier to follow than a bent line; gaps at NaN."""
    xs = np.arange(len(ys) - 1)[:, None] + [0, 0.5, 0.5, 1]
    points = np.stack([xs, ys[:-1, None].repeat(4, axis=1)], axis=-1)
    points[:, 2:, 1] = ys[1:, None]
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4] * len(xs)
    axes.add_patch(PathPatch(Path(points.reshape(-1, 2), codes), fill=False, **style))


def _draw_winner(axes: Axes, ys: np.ndarray, text: str) -> None:
    _draw_curve(axes, ys, edgecolor="white", linewidth=5, zorder=3)
    _draw_curve(axes, ys, edgecolor=VALIDATION, linewidth=2.8, zorder=3)
    axes.scatter(np.arange(len(ys)), ys, s=26, color=VALIDATION, edgecolor="white", zorder=6)
    x = len(ys) - 1 + _STRIP + 0.04
    label = axes.text(x, ys[-1], shortened(text), color=VALIDATION, fontsize=9, va="center")
    label.set_fontweight("bold")


def _draw_axis(axes: Axes, x: float, axis: Axis, *, is_score: bool) -> None:
    """Draw an axis as a line or a coloured strip, with its name above and its ticks at the left."""
    if is_score:
        steps = np.linspace(0, 1, 40)
        bars = axes.bar(x, 1 / 40, _STRIP, bottom=steps * 39 / 40, align="edge")
        for bar, colour in zip(bars, SHADES(steps), strict=True):
            bar.set(facecolor=colour, edgecolor=colour)
    else:
        axes.plot([x, x], [0, 1], color=INK, linewidth=1, zorder=4)
    behind = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.6}
    for y, text in axis.ticks:
        axes.plot([x - 0.025, x], [y, y], color=INK, linewidth=1, zorder=4)
        axes.text(x - 0.05, y, text, fontsize=8, ha="right", va="center", bbox=behind, zorder=5)
    weight = "bold" if is_score else "normal"
    axes.text(x, 1.05, wrapped(axis.name), fontsize=8.5, fontweight=weight, ha="center")


@styled
def draw_panels(search: Search) -> str:
    """Score against each parameter, one panel per parameter.

    Dots of trials with fewer epochs are smaller and paler. Crosses at the bottom are trials without
    a score.
    """
    names = list(search.scales)
    columns = min(_PANELS_IN_A_ROW, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(3 * columns, 2.55 * rows, gap=0.1)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for index, (axes, name) in enumerate(zip(panels, names, strict=False)):
        _draw_panel(axes, search, axis_of(search, name))
        _name_scores(axes, search, is_named=index % columns == 0)
        axes.set_ylim(-0.1, 1.06)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return inline_svg(figure, "panels", description="Score against each parameter")


def _name_scores(axes: Axes, search: Search, *, is_named: bool = True) -> None:
    scores = score_axis(search)
    axes.set_yticks(*zip(*scores.ticks, strict=True))
    if is_named:
        axes.set_ylabel(wrapped(scores.name), fontsize=_TICKS)


def _draw_panel(axes: Axes, search: Search, axis: Axis) -> None:
    trials, scores = list(reversed(search.scored)), score_axis(search)
    share = np.array([trial.epochs for trial in trials], float)
    share /= max(share.max(), 1)
    xs, ys = positions(axis, trials), _scores_of(scores, trials)
    colours = [
        to_rgba(shade(scores, trial.result), 0.5 + 0.45 * part)
        for trial, part in zip(trials, share, strict=True)
    ]
    axes.scatter(xs, ys, s=8 + 34 * share, c=colours, linewidth=0, zorder=2)
    row = [trial.name for trial in trials].index(search.winner)
    axes.scatter(xs[row], ys[row], s=90, color=VALIDATION, edgecolor="white", zorder=4)
    failed = positions(axis, search.unscored)
    axes.scatter(failed, np.full(len(failed), -0.05), s=16, marker="x", color=ALARM, zorder=3)
    axes.grid(axis="y")
    axes.tick_params(labelsize=_TICKS)
    ticks, texts = zip(*axis.ticks, strict=True)
    is_crowded = sum(map(len, texts)) + 2 * len(texts) > 36
    axes.set_xticks(ticks, texts)
    if is_crowded and axis.scale == CHOICE:
        axes.tick_params(axis="x", labelrotation=35)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(wrapped(axis.name, 36), fontsize=9)


@styled
def draw_importance(importance: Importance) -> str:
    """Bars with standard deviations; pale bars are within two of zero.

    Raises:
        ValueError: there is nothing meaningful to draw.
    """
    if not importance.is_meaningful:
        raise ValueError(f"no importances to draw: {importance.explanation}")
    names, means, spreads = importance.names, importance.means, importance.spreads
    figure = new_figure(9, 0.8 + 0.4 * len(names))
    axes = figure.subplots()
    colours = [
        FAINT if name == EPOCHS else TRAIN if mean > 2 * spread else _PALE
        for name, mean, spread in zip(names, means, spreads, strict=True)
    ]
    rows = range(len(names))
    axes.barh(rows, means, 0.62, color=colours, zorder=2)
    ends = np.subtract(means, spreads), np.add(means, spreads)
    axes.hlines(rows, *ends, color=INK, linewidth=1.4, zorder=3)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    axes.set_yticks(rows, [wrapped(name, 38) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("R² lost by shuffling the parameter", fontsize=9)
    axes.grid(axis="x")
    axes.tick_params(labelsize=_TICKS)
    axes.spines["left"].set_visible(False)
    return inline_svg(figure, "importance", description="Importance of each parameter")


@styled
def draw_timeline(search: Search) -> str:
    """Best score so far, and below it a row for each worker with a bar for each trial.

    Bars have the colour of their score; the best trial has a frame, trials without a score are
    red and hatched.
    """
    workers = sorted({trial.worker for trial in search.trials}, key=_by_number)
    start = min(trial.started for trial in search.trials)
    end = max(trial.ended for trial in search.trials)
    seconds, unit = _unit(end - start)
    height = _ROW_INCHES * len(workers)
    figure = new_figure(_WIDTH, _CURVE_INCHES + height + 0.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[_CURVE_INCHES, height])
    _draw_best(above, search, start, seconds)
    inches = (_WIDTH - 1) / max(end - start, 1e-9)
    for trial in search.trials:
        row, left = workers.index(trial.worker), (trial.started - start) / seconds
        _draw_bar(below, search, trial, row, left=left, width=trial.seconds / seconds)
        if trial.is_scored and len(trial.name) * _CHARACTER_INCHES < trial.seconds * inches:
            is_dark = score_axis(search).position(trial.result) > _LIGHT
            style = {"fontsize": 7.5, "ha": "center", "va": "center", "zorder": 4}
            x = left + trial.seconds / seconds / 2
            below.text(x, row, shortened(trial.name), color="white" if is_dark else INK, **style)
    below.set_yticks(range(len(workers)), [shortened(worker, 16) for worker in workers])
    below.set_ylim(len(workers) - 0.45, -0.55)
    duration = max(end - start, 1e-9) / seconds
    below.set_xlim(-0.005 * duration, 1.005 * duration)
    below.set_xlabel(f"{unit} since the start of the first trial", fontsize=9)
    below.tick_params(labelsize=_TICKS)
    below.spines["left"].set_visible(False)
    return inline_svg(figure, "timeline", description="Best score and trials of workers over time")


def _by_number(worker: str) -> tuple[str, int]:
    """Sorts tuner10 behind tuner9."""
    digits = re.search(r"\d+$", worker)
    return worker.rstrip("0123456789"), int(digits[0]) if digits else -1


def _unit(seconds: float) -> tuple[int, str]:
    if seconds < 300:
        return 1, "seconds"
    return (60, "minutes") if seconds < 3 * 3600 else (3600, "hours")


def _draw_best(axes: Axes, search: Search, start: float, seconds: float) -> None:
    """A step for each new best score, and a dot for each trial when it ended."""
    scores = score_axis(search)
    curve = best_so_far(search.trials, higher_is_better=search.higher_is_better)
    curve.append((max(trial.ended for trial in search.trials), curve[-1][1]))
    times = [(time - start) / seconds for time, _ in curve]
    bests = [scores.position(score) for _, score in curve]
    axes.step(times, bests, where="post", color=TRAIN, linewidth=2, zorder=2)
    for trial in search.scored:
        x, y = (trial.ended - start) / seconds, scores.position(trial.result)
        if trial.name == search.winner:
            axes.scatter(x, y, s=80, color=VALIDATION, edgecolor="white", zorder=4)
        else:
            axes.scatter(x, y, s=16, color=shade(scores, trial.result), zorder=3)
    axes.set_ylim(-0.06, 1.08)
    axes.xaxis.set_major_locator(MaxNLocator(10))
    axes.grid(axis="y")
    _name_scores(axes, search)
    axes.tick_params(labelsize=_TICKS, labelbottom=False)


def _draw_bar(
    axes: Axes, search: Search, trial: SearchTrial, row: int, *, left: float, width: float
) -> None:
    style: dict[str, Any] = {"color": "white", "edgecolor": ALARM, "hatch": "////"}
    if trial.is_scored:
        style = {"color": shade(score_axis(search), trial.result), "edgecolor": "white"}
    if trial.name == search.winner:
        style |= {"edgecolor": VALIDATION, "linewidth": 2.5, "zorder": 3}
    axes.barh(row, width, 0.74, left=left, **{"linewidth": 0.8, "zorder": 2, **style})
