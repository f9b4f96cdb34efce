"""Figures as SVG to be put inside a page: real text, the same bytes, and names of their own."""

import io
import re
import warnings
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

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
