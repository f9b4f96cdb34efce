"""The image of a ranking: a linear probe's accuracy against latency, and who loses in both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from keras_transfer.evaluation.intervals import Interval
from keras_transfer.reporting.figures import (
    ALARM,
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

_PLACES = [
    (x, y)
    for distance in (7, 16, 26, 38)
    for x, y in ((distance, 5), (-distance, 5), (distance, -5), (-distance, -5))
] + [(x, y) for y in (22, -22, 36, -36, 50, -50) for x in (8, -8)]
"""Where a name may stand, in points from its dot, the best places first."""


Line = tuple[float, float, float, float]
"""Left and right in ms, bottom and top in accuracy, of what runs along an axis."""


@dataclass(frozen=True)
class Dot:
    """One candidate as it is drawn; `accuracy` with its 95 % interval, 0 to 1."""

    name: str
    latency_ms: float
    accuracy: float
    interval: Interval
    recommended: bool


def find_front(dots: Sequence[Dot]) -> list[Dot]:
    """Those that no other is at least as fast as and better than, the fastest first."""
    front: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.latency_ms, -dot.accuracy)):
        if not front or dot.accuracy > front[-1].accuracy:
            front.append(dot)
    return front


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
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    _set_axes(axes, dots, control, max_latency_ms)
    front = find_front(dots)
    axes.step(
        [dot.latency_ms for dot in front],
        [dot.accuracy for dot in front],
        where="post",
        color=TRAIN,
        linewidth=1.4,
        alpha=0.55,
        zorder=1,
        label="front: nothing is both faster and better",
    )
    for dot in dots:
        colour = VALIDATION if dot.recommended else (TRAIN if dot in front else FAINT)
        axes.vlines(dot.latency_ms, *dot.interval, color=colour, linewidth=2, alpha=0.6, zorder=2)
        axes.scatter([dot.latency_ms], [dot.accuracy], s=54, color=colour, zorder=3)
    axes.axhline(control, color=ALARM, linestyle=":", linewidth=1.4, label="noise (the control)")
    if max_latency_ms is not None:
        limit = f"max_latency_ms={max_latency_ms:g}"
        axes.axvline(max_latency_ms, color=INK, linestyle="--", linewidth=1, label=limit)
    axes.set_title(
        "Linear probe against latency", loc="left", color=INK, fontsize=12, fontweight="bold"
    )
    figure.legend(loc="outside lower left", ncols=3, frameon=False, labelcolor=INK, fontsize=9)
    figure.suptitle(fill(headline, 118), color=INK, fontsize=9.5, x=0.01, ha="left")
    lines = [(*axes.get_xlim(), control, control)]
    if max_latency_ms is not None:
        lines.append((max_latency_ms, max_latency_ms, *axes.get_ylim()))
    # Names can be kept apart only where everything else has its final place.
    canvas.draw()
    figure.set_layout_engine("none")
    _write_names(axes, dots, lines, canvas)
    save(figure, file)


def _set_axes(
    axes: Axes, dots: Sequence[Dot], control: float, max_latency_ms: float | None
) -> None:
    latencies = [dot.latency_ms for dot in dots]
    if max_latency_ms is not None:
        latencies.append(max_latency_ms)
    axes.set_xscale("log")
    # Room for names beside the outermost dots.
    spread = max(latencies) / min(latencies)
    margin = max(1.5, spread**0.16)
    axes.set_xlim(min(latencies) / margin, max(latencies) * margin)
    steps = (1.0, 2.0, 5.0) if spread < 300 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low = min(control, *(dot.interval[0] for dot in dots))
    high = max(control, *(dot.interval[1] for dot in dots))
    room = 0.09 * max(high - low, 0.05)
    axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_formatter(percent_axis())
    axes.set_xlabel("latency of the frozen layers, one image, ms (log scale)", color=INK)
    axes.set_ylabel("held-out accuracy, 95 % interval", color=INK)
    axes.tick_params(colors=INK, which="both", length=0)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def _write_names(
    axes: Axes, dots: Sequence[Dot], lines: Sequence[Line], canvas: FigureCanvasAgg
) -> None:
    """Each name at the first place where it covers no dot, no line and no other name."""
    taken = list(_boxes_of(axes, dots, lines))
    inside = axes.get_window_extent()
    # The recommended one chooses first.
    for dot in sorted(dots, key=lambda dot: (not dot.recommended, -dot.accuracy)):
        for place in _PLACES:
            label = _write(axes, dot, place)
            box = _box_of(label, canvas)
            free = not any(box.overlaps(other) for other in taken)
            if free and inside.x0 <= box.x0 and box.x1 <= inside.x1 and box.y0 >= inside.y0:
                break
            label.remove()
        else:
            label = _write(axes, dot, _PLACES[0])
            box = _box_of(label, canvas)
        taken.append(box)


def _write(axes: Axes, dot: Dot, place: tuple[int, int]) -> Annotation:
    far = abs(place[0]) > 16 or abs(place[1]) > 16
    return axes.annotate(
        shown(dot.name, 34),
        (dot.latency_ms, dot.accuracy),
        place,
        textcoords="offset points",
        ha="left" if place[0] > 0 else "right",
        va="center",
        color=INK,
        fontsize=9,
        fontweight="bold" if dot.recommended else "normal",
        arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.7} if far else None,
    )


def _box_of(label: Annotation, canvas: FigureCanvasAgg) -> Bbox:
    """Of the words alone: an annotation's own extent has its line as well, down to the dot."""
    label.update_positions(canvas.get_renderer())
    return Text.get_window_extent(label, canvas.get_renderer())


def _boxes_of(axes: Axes, dots: Sequence[Dot], others: Sequence[Line]) -> Iterator[Bbox]:
    """What names must not cover, in pixels."""
    lines = list(others)
    for dot in dots:
        lines.append((dot.latency_ms, dot.latency_ms, *dot.interval))
        lines.append((dot.latency_ms, dot.latency_ms, dot.accuracy, dot.accuracy))
    front = find_front(dots)
    for one, other in pairwise(front):
        lines.append((one.latency_ms, other.latency_ms, one.accuracy, one.accuracy))
        lines.append((other.latency_ms, other.latency_ms, one.accuracy, other.accuracy))
    for left, right, low, high in lines:
        corners = axes.transData.transform([(left, low), (right, high)])
        yield Bbox([corners[0] - 5, corners[1] + 5])
