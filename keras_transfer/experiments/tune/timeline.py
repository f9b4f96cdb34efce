"""When a search did what: the best score so far, and below it a row of trials for each worker."""

import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from keras_transfer.experiments.tune.axes import Axis, quiet, score_axis, shade
from keras_transfer.experiments.tune.record import Search, SearchTrial, best_so_far
from keras_transfer.reporting.figures import (
    ALARM,
    INK,
    TRAIN,
    VALIDATION,
    inline_svg,
    new_figure,
    shown,
)

_WIDTH = 12.0
_CURVE_INCHES, _ROW_INCHES = 2.2, 0.42
_CHARACTER_INCHES = 0.075
_LIGHT = 0.68
"""Shades below this place of the axis of scores are too light for white letters."""


def draw_timeline(search: Search) -> str:
    """Best score so far, and below it a row for each worker with a bar for each trial, as SVG.

    Bars have the colour of their score; the winner has a frame, trials without a score are red
    and hatched.
    """
    workers = sorted({trial.worker for trial in search.trials}, key=_by_number)
    start = min(trial.started for trial in search.trials)
    end = max(trial.ended for trial in search.trials)
    seconds, unit = _unit(end - start)
    height = _ROW_INCHES * len(workers)
    figure = new_figure(_WIDTH, _CURVE_INCHES + height + 0.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[_CURVE_INCHES, height])
    _draw_curve(above, search, start, seconds)
    for row, worker in enumerate(workers):
        trials = [trial for trial in search.trials if trial.worker == worker]
        _draw_row(below, search, trials, row, start=start, seconds=seconds, end=end)
    below.set_yticks(range(len(workers)), [shown(worker, 16) for worker in workers])
    below.set_ylim(len(workers) - 0.45, -0.55)
    duration = max(end - start, 1e-9) / seconds
    below.set_xlim(-0.005 * duration, 1.005 * duration)
    below.set_xlabel(f"{unit} since the first trial began", color=INK, fontsize=9)
    quiet(below)
    below.spines["left"].set_visible(False)
    return inline_svg(figure, "timeline", description="Best score and trials of workers over time")


def _by_number(worker: str) -> tuple[str, int]:
    """So that tuner10 comes after tuner9."""
    digits = re.search(r"\d+$", worker)
    return worker.rstrip("0123456789"), int(digits[0]) if digits else -1


def _unit(seconds: float) -> tuple[int, str]:
    if seconds < 300:
        return 1, "seconds"
    return (60, "minutes") if seconds < 3 * 3600 else (3600, "hours")


def _draw_curve(axes: Axes, search: Search, start: float, seconds: float) -> None:
    scores = score_axis(search)
    curve = best_so_far(search.trials, higher_is_better=search.higher_is_better)
    last = max(trial.ended for trial in search.trials)
    times = [(time - start) / seconds for time, _ in [*curve, (last, 0)]]
    bests = [scores.place(score) for _, score in [*curve, curve[-1]]]
    axes.step(times, bests, where="post", color=TRAIN, linewidth=2, zorder=2)
    for trial in search.scored:
        x, y = (trial.ended - start) / seconds, scores.place(trial.result)
        if trial.name == search.winner:
            axes.scatter([x], [y], s=80, color=VALIDATION, edgecolor="white", zorder=4)
        else:
            axes.scatter([x], [y], s=16, color=shade(scores, trial.result), zorder=3)
    ticks, texts = zip(*scores.ticks, strict=True)
    axes.set_yticks(ticks, texts)
    axes.set_ylim(-0.06, 1.08)
    axes.set_ylabel(shown(scores.name), color=INK, fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(10))
    quiet(axes, grid="y")
    axes.tick_params(labelbottom=False)


def _draw_row(
    axes: Axes,
    search: Search,
    trials: Sequence[SearchTrial],
    row: int,
    *,
    start: float,
    seconds: float,
    end: float,
) -> None:
    scores = score_axis(search)
    inches = (_WIDTH - 1) / max(end - start, 1e-9)
    for trial in sorted(trials, key=lambda trial: trial.name == search.winner):
        is_winner = trial.name == search.winner
        axes.barh(
            row,
            trial.seconds / seconds,
            0.74,
            left=(trial.started - start) / seconds,
            color=shade(scores, trial.result) if trial.is_scored else "white",
            edgecolor=VALIDATION if is_winner else "white" if trial.is_scored else ALARM,
            hatch=None if trial.is_scored else "////",
            linewidth=2.5 if is_winner else 0.8,
            zorder=3 if is_winner else 2,
        )
        if trial.is_scored and len(trial.name) * _CHARACTER_INCHES < trial.seconds * inches:
            _write_name(axes, scores, trial, row, (trial.started - start) / seconds, seconds)


def _write_name(
    axes: Axes, scores: Axis, trial: SearchTrial, row: int, left: float, seconds: float
) -> None:
    axes.text(
        left + trial.seconds / seconds / 2,
        row,
        shown(trial.name),
        color="white" if scores.place(trial.result) > _LIGHT else INK,
        fontsize=7.5,
        ha="center",
        va="center",
        zorder=4,
    )
