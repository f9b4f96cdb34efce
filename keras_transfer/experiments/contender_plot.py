"""The figure of compared networks: score against latency."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from keras_transfer.evaluation.intervals import Interval
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


@dataclass(frozen=True)
class Dot:
    """The drawn figures of one network: latency of one image, score and its 95 % interval."""

    name: str
    latency_ms: float
    score: float
    interval: Interval


@styled
def draw_contenders(
    dots: Sequence[Dot], file: Path, *, monitor: Monitor, title: str, headline: str
) -> None:
    """A dot with its interval for each of two or three networks."""
    figure = new_figure(8, 4.4)
    axes = figure.subplots()
    axes.set_xscale("log")
    latencies = [dot.latency_ms for dot in dots]
    axes.set_xlim(min(latencies) / 2, max(latencies) * 2)
    styles = zip(dots, (TRAIN, VALIDATION, FAINT), ("s", "D", "o"), strict=False)
    for dot, colour, marker in styles:
        axes.vlines(dot.latency_ms, *dot.interval, color=colour, linewidth=2, alpha=0.6)
        axes.scatter(dot.latency_ms, dot.score, s=54, marker=marker, color=colour, zorder=3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
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
