"""The figures of compared networks: score against latency, and against size."""

import textwrap
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from keras_transfer.experiments.contenders import Figures
from keras_transfer.reporting.figures import (
    FAINT,
    TRAIN,
    VALIDATION,
    Label,
    new_figure,
    percent_axis,
    place_labels,
    save,
    set_headline,
    styled,
)
from keras_transfer.tasks.task import Monitor


@styled
def draw_contenders(
    dots: Sequence[Figures], file: Path, *, monitor: Monitor, title: str, headline: str
) -> None:
    """A dot with its interval for each network, with a look of its own for up to twelve."""
    figure = new_figure(8, 4.4)
    axes = figure.subplots()
    _scale_costs(axes, [dot.latency_ms for dot in dots])
    colours, markers = cycle((TRAIN, VALIDATION, FAINT)), cycle("sDo^")
    for dot, colour, marker in zip(dots, colours, markers, strict=False):
        axes.vlines(dot.latency_ms, *dot.interval, color=colour, linewidth=2, alpha=0.6)
        axes.scatter(dot.latency_ms, dot.score, s=54, marker=marker, color=colour, zorder=3)
    if monitor.is_share:
        axes.yaxis.set_major_formatter(percent_axis())
    axes.set_xlabel("latency of the whole network, one image, ms (log scale)")
    axes.set_ylabel(f"test {monitor.metric.replace('_', ' ')}, 95 % interval")
    axes.set_title(title)
    axes.grid()
    set_headline(figure, headline, characters=100)
    labels = [Label(dot.name, dot.latency_ms, dot.score) for dot in dots]
    lines = [(dot.latency_ms, dot.latency_ms, *dot.interval) for dot in dots]
    place_labels(axes, labels, lines)
    save(figure, file)


@styled
def draw_pareto(
    chain: Sequence[Figures],
    forms: Sequence[Figures],
    file: Path,
    *,
    monitor: Monitor,
    headline: str,
) -> None:
    """Two axes with the networks of a chain and other forms of them: score by latency, and by size.

    A dashed line connects the networks of the chain in their order, a step the best trade-offs:
    points than which no other has both a better score and less latency, or size. Points have
    numbers, because names of several forms at one place would cover each other.
    """
    points = [*chain, *forms]
    figure = new_figure(11, 4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    left.set_ylabel(f"test {monitor.metric.replace('_', ' ')}, 95 % interval")
    if monitor.is_share:
        left.yaxis.set_major_formatter(percent_axis())
    set_headline(figure, headline, characters=130)
    sides = (
        (left, "latency of one image, ms (log scale)", [p.latency_ms for p in points]),
        (right, "size of the file, MB (log scale)", [p.megabytes for p in points]),
    )
    for axes, label, costs in sides:
        _draw_side(axes, points, costs, monitor, num_chain=len(chain))
        axes.set_xlabel(label)
    names = "    ".join(f"{number} {point.name}" for number, point in enumerate(points, start=1))
    figure.supxlabel(textwrap.fill(names, 130), fontsize=9)
    for axes, _, costs in sides:
        labels = [
            Label(str(number), x, point.score)
            for number, (point, x) in enumerate(zip(points, costs, strict=True), start=1)
        ]
        lines = [(x, x, *p.interval) for p, x in zip(points, costs, strict=True)]
        place_labels(axes, labels, lines)
    save(figure, file)


def _scale_costs(axes: Axes, costs: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, around all costs, with plain numbers."""
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 2, max(costs) * 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_side(
    axes: Axes,
    points: Sequence[Figures],
    costs: Sequence[float],
    monitor: Monitor,
    *,
    num_chain: int,
) -> None:
    """Draw points at their costs; the first ones are those of the chain."""
    _scale_costs(axes, costs)
    axes.grid()
    best = trade_offs(costs, [monitor.rank(point.score) for point in points])
    front = [(costs[place], points[place].score) for place in best]
    axes.step(*zip(*front, strict=True), where="post", color=FAINT, linewidth=1)
    chain = [(x, p.score) for x, p in zip(costs, points, strict=True)][:num_chain]
    axes.plot(*zip(*chain, strict=True), color=TRAIN, linewidth=1, linestyle="--")
    for number, (x, point) in enumerate(zip(costs, points, strict=True)):
        colour, marker = (TRAIN, "s") if number < num_chain else (VALIDATION, "D")
        axes.vlines(x, *point.interval, color=colour, linewidth=2, alpha=0.5)
        axes.scatter(x, point.score, s=48, marker=marker, color=colour, zorder=3)


def trade_offs(costs: Sequence[float], ranks: Sequence[float]) -> list[int]:
    """The places of the points that no other beats in both, by rising cost (a Pareto front)."""
    best: list[int] = []
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], -ranks[place])):
        if not best or ranks[place] > ranks[best[-1]]:
            best.append(place)
    return best
