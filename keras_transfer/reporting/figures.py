"""The look that all figures share, and how they become files.

Figures are built without pyplot, which keeps global state and would look for a screen.

Figures as SVG to be put inside a page: real text, the same bytes, and names of their own.
"""

import io
import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

TRAIN, VALIDATION = "#3b6fb6", "#e07b39"
INK, FAINT, GRID, SHADE, ALARM = "#22303c", "#77848f", "#d9dfe5", "#edf1f6", "#c0392b"
_DOTS_PER_INCH = 120


def new_figure(width: float, height: float, *, gap: float = 0.06) -> Figure:
    """An empty figure that makes room for its labels; sizes and gaps in inches."""
    engine = ConstrainedLayoutEngine(w_pad=gap, h_pad=gap, wspace=0, hspace=0)
    return Figure(figsize=(width, height), layout=engine, facecolor="white")


def percent_axis() -> PercentFormatter:
    """Ticks of a share, such as 40 %."""
    return PercentFormatter(1.0, symbol=" %")


def save(figure: Figure, file: Path) -> None:
    """Write a PNG; the same figure gives the same bytes."""
    with warnings.catch_warnings():
        # A name in a script the font lacks shows boxes; that is no news for the user's screen.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})


def shown(name: str, length: int = 24) -> str:
    """A name as it is drawn: at most `length` characters, and never read as a formula.

    Long names lose their middle: many lists of classes differ in the first or last word.
    """
    printable = name.encode("utf-8", "replace").decode()
    if len(printable) > length:
        tail = length // 3
        printable = f"{printable[: length - tail - 1]}…{printable[-tail:]}"
    return printable.replace("$", r"\$")


def broken(name: str, length: int = 15) -> str:
    """A dotted name over several lines of about `length` characters, as `shown` shows them.

    Lines end behind dots and underscores; a word without any that is longer loses its middle.
    """
    lines = [""]
    for word in re.findall(r"[^._]*[._]|[^._]+", name):
        if lines[-1] and len(lines[-1] + word) > length:
            lines.append("")
        lines[-1] += word
    return "\n".join(shown(line, length) for line in lines)


_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#")
_LAYOUT_ONLY = ("width", "height", "version")
_LEGIBLE = 0.6
"""Share of a figure's width down to which its letters can be read; a narrower place scrolls."""


def inline_svg(figure: Figure, name: str, *, description: str) -> str:
    """The figure as one <svg> element that fits the width of its place; equal figures, equal bytes.

    Text stays text: it can be searched and takes the font of the page. Matplotlib names what it
    draws alike in every figure (`axes_1`, and hashes of clip paths and hatches), so that two
    figures in one page would use each other's clip paths: all names are put behind `name`.

    Args:
        name: letters, digits and dashes; unique in the page.
        description: for those who cannot see it.
    """
    text = io.StringIO()
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}),
        warnings.catch_warnings(),
    ):
        # Browsers have the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(text, format="svg", metadata={"Date": None})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(text.getvalue())
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for attribute in _LAYOUT_ONLY:
        root.attrib.pop(attribute, None)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _own(key, value, name))
    inches = figure.get_figwidth()
    root.set("style", f"max-width: {inches:g}in; min-width: {_LEGIBLE * inches:g}in")
    root.set("id", name)
    root.set("role", "img")
    root.set("aria-label", description)
    return ElementTree.tostring(root, encoding="unicode")


def _own(key: str, value: str, name: str) -> str:
    """The attribute's value, with the names in it put behind the figure's."""
    if key == "id":
        return f"{name}-{value}"
    if key == f"{{{_LINK}}}href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return _REFERENCE.sub(f"url(#{name}-", value)
