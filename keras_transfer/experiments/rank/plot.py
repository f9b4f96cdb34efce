"""The figure of a ranking: a linear probe's accuracy against latency, and the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from keras_transfer.evaluation.intervals import Interval
from keras_transfer.reporting.figures import (
    ALARM,
    FAINT,
    INK,
    TRAIN,
    VALIDATION,
    Label,
    Line,
    new_figure,
    percent_axis,
    place_labels,
    save,
    set_headline,
    shortened,
    styled,
)


@dataclass(frozen=True)
class Dot:
    """The drawn figures of one candidate; `accuracy` and its 95 % interval are 0 to 1."""

    name: str
    latency_ms: float
    accuracy: float
    interval: Interval
    recommended: bool


def find_front(dots: Sequence[Dot]) -> list[Dot]:
    """The Pareto front, the fastest first: no other dot is as fast and better."""
    front: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.latency_ms, -dot.accuracy)):
        if not front or dot.accuracy > front[-1].accuracy:
            front.append(dot)
    return front


@styled
def draw_ranking(
    dots: Sequence[Dot],
    file: Path,
    *,
    control: float,
    headline: str,
    max_latency_ms: float | None,
) -> None:
    """A dot with its interval for each candidate, the Pareto front and the control.

    Args:
        control: accuracy of the probe on noise.
        headline: drawn above, broken into lines.
        max_latency_ms: drawn as a limit, if there is one.
    """
    figure = new_figure(9.5, 5.6)
    axes = figure.subplots()
    _set_axes(axes, dots, control, max_latency_ms)
    front = find_front(dots)
    steps = [dot.latency_ms for dot in front], [dot.accuracy for dot in front]
    label = "front: nothing is both faster and better"
    axes.step(*steps, where="post", color=TRAIN, linewidth=1.4, alpha=0.55, zorder=1, label=label)
    for dot in dots:
        colour = VALIDATION if dot.recommended else (TRAIN if dot in front else FAINT)
        marker = "D" if dot.recommended else "o"
        axes.vlines(dot.latency_ms, *dot.interval, color=colour, linewidth=2, alpha=0.6, zorder=2)
        # In black and white: a diamond is recommended, a full dot is on the front.
        face = colour if dot.recommended or dot in front else "white"
        style: dict[str, Any] = {"facecolor": face, "edgecolor": colour, "linewidth": 1.5}
        axes.scatter(dot.latency_ms, dot.accuracy, s=54, marker=marker, zorder=3, **style)
    axes.axhline(control, color=ALARM, linestyle=":", linewidth=1.4, label="noise (the control)")
    lines = [*_lines(dots, front), (*axes.get_xlim(), control, control)]
    if max_latency_ms is not None:
        limit = f"max_latency_ms={max_latency_ms:g}"
        axes.axvline(max_latency_ms, color=INK, linestyle="--", linewidth=1, label=limit)
        lines.append((max_latency_ms, max_latency_ms, *axes.get_ylim()))
    axes.set_title("Linear probe against latency")
    figure.legend(loc="outside lower left", ncols=3, fontsize=9)
    set_headline(figure, headline, characters=118)
    labels = [
        Label(shortened(dot.name, 34), dot.latency_ms, dot.accuracy, dot.recommended)
        for dot in sorted(dots, key=lambda dot: (not dot.recommended, -dot.accuracy))
    ]
    place_labels(axes, labels, lines)
    save(figure, file)


def _set_axes(
    axes: Axes, dots: Sequence[Dot], control: float, max_latency_ms: float | None
) -> None:
    latencies = [dot.latency_ms for dot in dots]
    if max_latency_ms is not None:
        latencies.append(max_latency_ms)
    axes.set_xscale("log")
    # Space for names beside the outermost dots.
    spread = max(latencies) / min(latencies)
    margin = max(1.5, spread**0.16)
    axes.set_xlim(min(latencies) / margin, max(latencies) * margin)
    steps = (1.0, 2.0, 5.0) if spread < 300 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low = min(control, *(dot.interval[0] for dot in dots))
    high = max(control, *(dot.interval[1] for dot in dots))
    margin = 0.09 * max(high - low, 0.05)
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_formatter(percent_axis())
    axes.set_xlabel("latency of the frozen layers, one image, ms (log scale)")
    axes.set_ylabel("held-out accuracy, 95 % interval")
    axes.grid()


def _lines(dots: Sequence[Dot], front: Sequence[Dot]) -> list[Line]:
    """Dots, intervals and the front: what names must not cover."""
    lines: list[Line] = []
    for dot in dots:
        lines.append((dot.latency_ms, dot.latency_ms, *dot.interval))
        lines.append((dot.latency_ms, dot.latency_ms, dot.accuracy, dot.accuracy))
    for one, other in pairwise(front):
        lines.append((one.latency_ms, other.latency_ms, one.accuracy, one.accuracy))
        lines.append((other.latency_ms, other.latency_ms, one.accuracy, other.accuracy))
    return lines
