"""The look that all figures share, and how they become files.

Figures are built without pyplot, which keeps global state and would look for a screen.
"""

import re
import warnings
from pathlib import Path

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
