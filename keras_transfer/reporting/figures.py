"""Shared code of all figures: style, labels that do not overlap, and writing as PNG or SVG.

Figures are built without pyplot, which has global state and may need a display. They are also
readable in black and white: differences in colour are differences in line, marker or hatching too.
"""

import io
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation, Text
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from keras_transfer.errors import printable

TRAIN, VALIDATION = "#3b6fb6", "#e07b39"
INK, FAINT, GRID, SHADE, ALARM = "#22303c", "#77848f", "#d9dfe5", "#edf1f6", "#c0392b"
_DOTS_PER_INCH = 120
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("axes.labelcolor", "axes.titlecolor", "legend.labelcolor"), INK),
    **dict.fromkeys(("text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.titleweight", "figure.titleweight"), "bold"),
    **dict.fromkeys(("axes.titlesize", "figure.titlesize"), 12),
    **dict.fromkeys(("xtick.major.size", "xtick.minor.size", "ytick.major.size"), 0),
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
}
styled = matplotlib.rc_context(_STYLE)
"""Decorator of functions that draw a figure."""


def new_figure(width: float, height: float, *, gap: float = 0.06) -> Figure:
    """An empty figure with automatic layout; sizes and gaps in inches."""
    engine = ConstrainedLayoutEngine(w_pad=gap, h_pad=gap, wspace=0, hspace=0)
    return Figure(figsize=(width, height), layout=engine, facecolor="white")


def new_canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure with invisible axes over all of it: inches from its upper left corner.

    Axes for each image would take four times as long as the images themselves.
    """
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def set_headline(figure: Figure, text: str, *, characters: int) -> None:
    """A sentence above all axes, in lines of at most this many characters."""
    figure.suptitle(fill(text, characters), fontsize=9.5, fontweight="normal", x=0.01, ha="left")


def percent_axis() -> PercentFormatter:
    """Ticks of a share, such as 40 %."""
    return PercentFormatter(1.0, symbol=" %")


def save(figure: Figure, file: Path) -> None:
    """Write a PNG; the same figure gives the same bytes."""
    with warnings.catch_warnings():
        # The font lacks some scripts and draws boxes instead; users cannot change that.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # Not `savefig`, which draws everything twice.
        figure.set_dpi(_DOTS_PER_INCH)
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})


def shortened(name: str, length: int = 24) -> str:
    """A name as it is drawn: at most `length` characters, and never parsed as a formula.

    Long names are cut in the middle: class names often differ in the first or the last word.
    """
    shown = printable(name)
    if len(shown) > length:
        tail = length // 3
        shown = f"{shown[: length - tail - 1]}…{shown[-tail:]}"
    return shown.replace("$", r"\$")


def wrapped(name: str, length: int = 15) -> str:
    """A dotted name over several lines of about `length` characters, each `shortened`.

    Lines end after dots and underscores; a longer word without any is cut in the middle.
    """
    lines = [""]
    for word in re.findall(r"[^._]*[._]|[^._]+", name):
        if lines[-1] and len(lines[-1] + word) > length:
            lines.append("")
        lines[-1] += word
    return "\n".join(shortened(line, length) for line in lines)


_PLACES = [
    (x, y)
    for distance in (7, 16, 26, 38)
    for x, y in ((distance, 5), (-distance, 5), (distance, -5), (-distance, -5))
] + [(x, y) for y in (22, -22, 36, -36, 50, -50) for x in (8, -8)]
"""Possible places of a label, in points from its dot, the best places first."""

Line = tuple[float, float, float, float]
"""Left, right, bottom and top of a line along an axis, in the units of the axes."""


@dataclass(frozen=True)
class Label:
    """A text next to the dot at (x, y)."""

    text: str
    x: float
    y: float
    is_bold: bool = False


def place_labels(axes: Axes, labels: Sequence[Label], lines: Iterable[Line]) -> None:
    """Write each label at the first place where it covers no line and no other label.

    Ends the automatic layout of the figure: everything else must be drawn before.

    Args:
        labels: earlier ones get better places.
        lines: lines and dots that must not be covered.
    """
    figure = axes.get_figure(root=True)
    assert figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")
    taken = []
    for left, right, low, high in lines:
        corners = axes.transData.transform([(left, low), (right, high)])
        taken.append(Bbox([corners[0] - 5, corners[1] + 5]))
    inside = axes.get_window_extent()
    for label in labels:
        for place in _PLACES:
            written, box = _write(axes, label, place, canvas)
            free = not any(box.overlaps(other) for other in taken)
            if free and inside.x0 <= box.x0 and box.x1 <= inside.x1 and box.y0 >= inside.y0:
                break
            written.remove()
        else:
            _, box = _write(axes, label, _PLACES[0], canvas)
        taken.append(box)


def _write(
    axes: Axes, label: Label, place: tuple[int, int], canvas: FigureCanvasAgg
) -> tuple[Annotation, Bbox]:
    """The text, with a line to its dot if that is far, and the box of the text."""
    far = abs(place[0]) > 16 or abs(place[1]) > 16
    written = axes.annotate(
        label.text,
        (label.x, label.y),
        place,
        textcoords="offset points",
        ha="left" if place[0] > 0 else "right",
        va="center",
        fontsize=9,
        fontweight="bold" if label.is_bold else "normal",
        arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.7} if far else None,
    )
    written.update_positions(canvas.get_renderer())
    return written, Text.get_window_extent(written, canvas.get_renderer())


_LEGIBLE = 0.6
"""Smallest share of a figure's width at which its text is readable; narrower pages scroll."""


def inline_svg(figure: Figure, name: str, *, description: str) -> str:
    """The figure as one <svg> element as wide as its page allows; equal figures, equal bytes.

    Text is not drawn as paths: it can be searched and has the font of the page. Figures in one page
    must not use each other's clip paths and hatches: the identifiers of these depend on `name`,
    all others are removed.

    Args:
        name: unique in the page.
        description: text for screen readers.
    """
    text = io.StringIO()
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}),
        warnings.catch_warnings(),
    ):
        # Browsers have the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(text, format="svg", metadata={"Date": None})
    content = re.search(r"<svg[^>]*>(.*)", text.getvalue(), re.DOTALL)
    assert content
    body = re.sub(
        r"<metadata>.*?</metadata>|(?<=<g) id=\"[^\"]*\"", "", content[1], flags=re.DOTALL
    )
    width, height = figure.get_size_inches()
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'viewBox="0 0 {:g} {:g}" style="max-width: {:g}in; min-width: {:g}in" role="img" '
        'aria-label="{}">'
    )
    return head.format(72 * width, 72 * height, width, _LEGIBLE * width, description) + Markup(body)
