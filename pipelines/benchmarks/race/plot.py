"""The image of a race: where the seconds went, and what accuracy came of them."""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from keras_transfer.reporting.figures import (
    FAINT,
    GRID,
    INK,
    TRAIN,
    VALIDATION,
    new_figure,
    percent_axis,
    save,
    shown,
)
from pipelines.benchmarks.race.timings import (
    EXTRACTION,
    OURS,
    READING,
    SETUP,
    TEST,
    Lap,
    estimate,
    of,
    stage_seconds,
    total_seconds,
)

_COLOURS = {SETUP: "#b8c2cc", READING: "#7fb8a4", EXTRACTION: "#3d8f78", TEST: "#8d99a5"}
_PHASE_COLOURS = (TRAIN, VALIDATION, "#8464b5", "#c9a227", "#b3556d")
_BAR = 0.56


def draw_race(laps: Sequence[Lap], headline: str, file: Path) -> None:
    """Stacked bars of median seconds by stage, and the accuracy of every lap with its mean.

    Args:
        laps: of at least one contestant; all have the phases of one spec.
        headline: drawn above, broken into lines.
        file: PNG to write.
    """
    # Ours at the bottom, as in the table: plain is what one looks at first.
    names = sorted({lap.name for lap in laps}, key=lambda name: (name == OURS, name))
    figure = new_figure(11, 2.3 + 0.75 * len(names))
    seconds, accuracy = figure.subplots(1, 2, sharey=True, width_ratios=[2.6, 1])
    _draw_seconds(seconds, laps, names)
    _draw_accuracy(accuracy, laps, names)
    for axes, title in ((seconds, "Seconds by stage"), (accuracy, "Test accuracy")):
        axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
        axes.tick_params(colors=INK, length=0)
    seconds.set_yticks(range(len(names)), [_label(laps, name) for name in names])
    seconds.set_ylim(len(names) - 0.5, -0.5)
    handles, labels = seconds.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=7, frameon=False, labelcolor=INK)
    figure.suptitle(fill(headline, 130), color=INK, fontsize=9.5, x=0.01, ha="left")
    save(figure, file)


def _label(laps: Sequence[Lap], name: str) -> str:
    peak = max(lap.peak_mb for lap in of(laps, name))
    return f"{name}\npeak {peak / 1000:.1f} GB"


def _draw_seconds(axes: Axes, laps: Sequence[Lap], names: Sequence[str]) -> None:
    stages = max((lap.stages for lap in laps), key=len)
    phases = [stage for stage in stages if stage not in _COLOURS]
    left = dict.fromkeys(names, 0.0)
    longest = max(total_seconds(of(laps, name)) for name in names)
    for stage in stages:
        if stage in phases:
            colour = _PHASE_COLOURS[phases.index(stage) % len(_PHASE_COLOURS)]
        else:
            colour = _COLOURS[stage]
        widths = [stage_seconds(of(laps, name), stage) for name in names]
        axes.barh(
            range(len(names)),
            widths,
            _BAR,
            left=list(left.values()),
            color=colour,
            edgecolor="white",
            linewidth=0.8,
            label=shown(stage),
        )
        for row, (name, width) in enumerate(zip(names, widths, strict=True)):
            if width > 0.09 * longest:
                _write_inside(axes, left[name] + width / 2, row, f"{width:.3g}")
            left[name] += width
    for row, name in enumerate(names):
        total = f" {total_seconds(of(laps, name)):.3g} s"
        axes.text(left[name], row, total, va="center", color=INK, fontweight="bold")
    axes.set_xlim(0, 1.12 * longest)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("seconds, median over seeds", color=INK)


def _write_inside(axes: Axes, x: float, y: float, text: str) -> None:
    axes.text(x, y, text, color="white", ha="center", va="center", fontsize=9)


def _draw_accuracy(axes: Axes, laps: Sequence[Lap], names: Sequence[str]) -> None:
    lowest, highest = 1.0, 0.0
    for row, name in enumerate(names):
        values = [lap.accuracy for lap in of(laps, name)]
        colour = TRAIN if name == OURS else INK
        axes.scatter(values, [row + 0.2] * len(values), s=16, color=colour, alpha=0.4, linewidth=0)
        mean, interval, _ = astuple(estimate(values))
        low, high = interval or (mean, mean)
        low, high = max(0.0, low), min(1.0, high)
        axes.hlines(row, low, high, color=colour, linewidth=2)
        axes.scatter([mean], [row], s=46, color=colour, zorder=3)
        text = f"{100 * mean:.1f} %"
        axes.text(mean, row - 0.14, text, ha="center", va="bottom", color=INK, fontsize=9)
        lowest, highest = min(lowest, low, *values), max(highest, high, *values)
    margin = max(0.02, 0.25 * (highest - lowest))
    axes.set_xlim(lowest - margin, min(highest + margin, 1 + margin / 4))
    axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
    axes.xaxis.set_major_formatter(percent_axis())
    axes.set_xlabel("mean and 95 % interval; a dot a seed", color=INK)
