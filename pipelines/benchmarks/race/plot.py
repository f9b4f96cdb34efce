"""The figure of a race: seconds by stage, and accuracies."""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from keras_transfer.reporting.figures import (
    INK,
    TRAIN,
    VALIDATION,
    new_figure,
    percent_axis,
    save,
    set_headline,
    shortened,
    styled,
)
from pipelines.benchmarks.race.timings import (
    EXTRACTION,
    OURS,
    READING,
    SETUP,
    TEST,
    Timing,
    estimate,
    names_of,
    of,
    stage_seconds,
    stages_of,
    total_seconds,
)

_COLOURS = {SETUP: "#b8c2cc", READING: "#7fb8a4", EXTRACTION: "#3d8f78", TEST: "#8d99a5"}
_HATCHES = {SETUP: "", READING: "....", EXTRACTION: "////", TEST: "xxxx"}
_PHASE_COLOURS = (TRAIN, VALIDATION, "#8464b5", "#c9a227", "#b3556d")
_BAR = 0.56


@styled
def draw_race(timings: Sequence[Timing], headline: str, file: Path) -> None:
    """Stacked bars of median seconds by stage, and the accuracy of every training with the mean.

    Args:
        timings: of at least one recipe; all have the phases of one spec.
        headline: drawn above, broken into lines.
        file: PNG to write.
    """
    names = names_of(timings)
    figure = new_figure(11, 2.3 + 0.75 * len(names))
    seconds, accuracy = figure.subplots(1, 2, sharey=True, width_ratios=[2.6, 1])
    _draw_seconds(seconds, timings, names)
    _draw_accuracy(accuracy, timings, names)
    for axes, title in ((seconds, "Seconds by stage"), (accuracy, "Test accuracy")):
        axes.set_title(title)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
    peaks = [max(timing.peak_mb for timing in of(timings, name)) / 1000 for name in names]
    labels = [f"{name}\npeak {peak:.1f} GB" for name, peak in zip(names, peaks, strict=True)]
    seconds.set_yticks(range(len(names)), labels)
    seconds.set_ylim(len(names) - 0.5, -0.5)
    figure.legend(loc="outside lower left", ncols=7)
    set_headline(figure, headline, characters=130)
    save(figure, file)


def _draw_seconds(axes: Axes, timings: Sequence[Timing], names: Sequence[str]) -> None:
    stages = stages_of(timings)
    phases = [stage for stage in stages if stage not in _COLOURS]
    colours = _COLOURS | {
        phase: _PHASE_COLOURS[number % len(_PHASE_COLOURS)] for number, phase in enumerate(phases)
    }
    left = dict.fromkeys(names, 0.0)
    longest = max(total_seconds(of(timings, name)) for name in names)
    for stage in stages:
        widths = [stage_seconds(of(timings, name), stage) for name in names]
        axes.barh(
            range(len(names)),
            widths,
            _BAR,
            left=list(left.values()),
            color=colours[stage],
            hatch=_HATCHES.get(stage),
            edgecolor="white",
            linewidth=0.8,
            label=shortened(stage),
        )
        for row, (name, width) in enumerate(zip(names, widths, strict=True)):
            if width > 0.09 * longest:
                box = {"facecolor": colours[stage], "edgecolor": "none", "pad": 1.5}
                style: dict[str, Any] = {"color": "white", "fontsize": 9, "bbox": box}
                x = left[name] + width / 2
                axes.text(x, row, f"{width:.3g}", ha="center", va="center", **style)
            left[name] += width
    for row, name in enumerate(names):
        total = f" {total_seconds(of(timings, name)):.3g} s"
        axes.text(left[name], row, total, va="center", fontweight="bold")
    axes.set_xlim(0, 1.12 * longest)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("seconds, median over seeds")


def _draw_accuracy(axes: Axes, timings: Sequence[Timing], names: Sequence[str]) -> None:
    lowest, highest = 1.0, 0.0
    for row, name in enumerate(names):
        values = [timing.accuracy for timing in of(timings, name)]
        colour = TRAIN if name == OURS else INK
        axes.scatter(values, [row + 0.2] * len(values), s=16, color=colour, alpha=0.4, linewidth=0)
        mean, interval, _ = astuple(estimate(values))
        low, high = interval or (mean, mean)
        low, high = max(0.0, low), min(1.0, high)
        axes.hlines(row, low, high, color=colour, linewidth=2)
        axes.scatter([mean], [row], s=46, color=colour, zorder=3)
        text = f"{100 * mean:.1f} %"
        axes.text(mean, row - 0.14, text, ha="center", va="bottom", fontsize=9)
        lowest, highest = min(lowest, low, *values), max(highest, high, *values)
    margin = max(0.02, 0.25 * (highest - lowest))
    axes.set_xlim(lowest - margin, min(highest + margin, 1 + margin / 4))
    axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
    axes.xaxis.set_major_formatter(percent_axis())
    axes.set_xlabel("mean, 95 % interval, seeds as dots")
