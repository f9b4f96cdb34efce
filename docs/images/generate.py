"""Draws the diagrams of docs/concepts as SVG files: `python docs/images/generate.py`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

COLUMN, ROW, MARGIN = 205, 96, 16
WIDTH, LINE, PADDING = 158, 17, 20
COLOURS = {"data": "#eceff4", "step": "#dbe7ff", "stored": "#dcf2e2", "choice": "#fff0d2"}

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A box with its middle at (column, row) of the grid; `text` has lines."""

    column: float
    row: float
    text: str
    kind: str = "step"

    @property
    def centre(self) -> Point:
        return MARGIN + WIDTH / 2 + self.column * COLUMN, MARGIN + 40 + self.row * ROW

    @property
    def height(self) -> int:
        return PADDING + LINE * len(self.text.splitlines())

    def edge(self, target: Point) -> Point:
        """The point of the border on the straight line to `target`."""
        (x, y), (to_x, to_y) = self.centre, target
        dx, dy = to_x - x, to_y - y
        share = min(WIDTH / 2 / abs(dx) if dx else 9, self.height / 2 / abs(dy) if dy else 9)
        return x + dx * share, y + dy * share


@dataclass(frozen=True)
class Diagram:
    """Boxes by name, and arrows as (from, to, label)."""

    title: str
    boxes: dict[str, Box]
    arrows: tuple[tuple[str, str, str], ...]


DIAGRAMS = {
    "phases": Diagram(
        "The two default phases and the refit",
        {
            "images": Box(0, 0, "training images\nin 4 views", "data"),
            "features": Box(1, 0, "features of the\nfrozen backbone", "stored"),
            "head": Box(2, 0, "phase frozen:\nsolve the head"),
            "tune": Box(2, 1.1, "phase fine-tune:\ntrain the last stage"),
            "choose": Box(1, 1.1, "before, after or mean:\nlowest validation loss", "choice"),
            "refit": Box(0, 1.1, "refit: once more with\nthe validation images"),
            "test": Box(0, 2.2, "test images:\nthe figures", "data"),
            "export": Box(1, 2.2, "model.keras and\nSavedModel", "stored"),
        },
        (
            ("images", "features", ""),
            ("features", "head", ""),
            ("head", "tune", "enough images"),
            ("tune", "choose", ""),
            ("choose", "refit", ""),
            ("refit", "test", ""),
            ("refit", "export", ""),
        ),
    ),
    "cache": Diagram(
        "Frozen layers run once, what trains reads their output",
        {
            "image": Box(0, 0, "image file", "data"),
            "view": Box(0, 1.1, "views 0, 1, 2, 3"),
            "frozen": Box(1, 1.1, "frozen layers,\nonce for each view"),
            "key": Box(1, 0, "key: hash of image,\nview, layers, weights"),
            "store": Box(2, 0.55, "features in\nshard files", "stored"),
            "head": Box(3, 0, "head: every epoch,\nfold and trial"),
            "tail": Box(3, 1.1, "unfrozen stages:\nevery epoch"),
        },
        (
            ("image", "view", ""),
            ("image", "key", ""),
            ("view", "frozen", ""),
            ("frozen", "store", ""),
            ("key", "store", ""),
            ("store", "head", ""),
            ("store", "tail", ""),
        ),
    ),
    "views": Diagram(
        "A view is computed from four inputs in a fixed order",
        {
            "image": Box(0, 0, "image, view number,\nviews.seed, strengths", "data"),
            "draw": Box(1, 0, "random numbers,\nalways the same"),
            "colour": Box(2, 0, "colour:\none affine map"),
            "geometry": Box(3, 0, "geometry:\none resampling"),
            "noise": Box(3, 1.1, "noise"),
            "erase": Box(2, 1.1, "erased box"),
            "view": Box(1, 1.1, "view", "stored"),
        },
        (
            ("image", "draw", ""),
            ("draw", "colour", ""),
            ("colour", "geometry", ""),
            ("geometry", "noise", ""),
            ("noise", "erase", ""),
            ("erase", "view", ""),
        ),
    ),
    "splits": Diagram(
        "From files to splits",
        {
            "files": Box(0, 0, "all files", "data"),
            "decode": Box(1, 0, "decode each"),
            "bad": Box(1, 1.1, "unreadable: named\nand left out", "data"),
            "units": Box(2, 0, "keep copies and\ngroups together"),
            "draw": Box(2, 1.1, "draw shares of\neach class, by seed"),
            "train": Box(3, 0, "training:\nweights", "data"),
            "val": Box(3, 1.1, "validation: epoch,\ntrial, phase", "data"),
            "test": Box(3, 2.2, "test: used once,\nat the end", "data"),
            "json": Box(2, 2.2, "splits.json\nwith hashes", "stored"),
        },
        (
            ("files", "decode", ""),
            ("decode", "bad", ""),
            ("decode", "units", ""),
            ("units", "draw", ""),
            ("draw", "train", ""),
            ("draw", "val", ""),
            ("draw", "test", ""),
            ("draw", "json", ""),
        ),
    ),
    "proof": Diagram(
        "An export appears only if it agrees with the model",
        {
            "run": Box(0, 0, "Keras model", "data"),
            "write": Box(1, 0, "SavedModel in a\ntemporary folder"),
            "process": Box(2, 0, "a process with\nTensorFlow alone"),
            "keras": Box(0, 1.1, "probabilities of\nthe test files"),
            "served": Box(2, 1.1, "probabilities of\nthe same files"),
            "compare": Box(1, 1.1, "same labels, close\nprobabilities?", "choice"),
            "export": Box(0.5, 2.2, "export/1 with\nproof.json", "stored"),
            "error": Box(1.5, 2.2, "ExportError,\nnothing is left", "data"),
        },
        (
            ("run", "write", ""),
            ("write", "process", ""),
            ("run", "keras", ""),
            ("process", "served", ""),
            ("keras", "compare", ""),
            ("served", "compare", ""),
            ("compare", "export", "yes"),
            ("compare", "error", "no"),
        ),
    ),
}


def _draw_box(box: Box) -> Iterator[str]:
    x, y = box.centre
    top = y - box.height / 2
    yield (
        f'<rect x="{x - WIDTH / 2:.1f}" y="{top:.1f}" width="{WIDTH}" height="{box.height}" '
        f'rx="6" fill="{COLOURS[box.kind]}" stroke="#5b6b85"/>'
    )
    for number, line in enumerate(box.text.splitlines()):
        baseline = top + PADDING / 2 + LINE * number + 13
        yield f'<text x="{x:.1f}" y="{baseline:.1f}">{escape(line)}</text>'


def _draw_arrow(start: Box, end: Box, label: str) -> Iterator[str]:
    (x, y), (to_x, to_y) = start.edge(end.centre), end.edge(start.centre)
    yield (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="#5b6b85" '
        'stroke-width="1.5" marker-end="url(#arrow)"/>'
    )
    if label:
        right, baseline = (x + to_x) / 2 - 8, (y + to_y) / 2 + 4
        yield f'<text x="{right:.1f}" y="{baseline:.1f}" class="label">{escape(label)}</text>'


def render(diagram: Diagram) -> str:
    """A diagram as SVG on a white ground, which is readable in a dark theme, too."""
    boxes = diagram.boxes
    width = max(box.centre[0] for box in boxes.values()) + WIDTH / 2 + MARGIN
    height = max(box.centre[1] + box.height / 2 for box in boxes.values()) + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img">',
        f"<title>{escape(diagram.title)}</title>",
        "<style>text{font:13px sans-serif;fill:#1c2430;text-anchor:middle}"
        ".label{text-anchor:end;font-style:italic}</style>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#5b6b85"/></marker></defs>',
        '<rect width="100%" height="100%" rx="8" fill="#ffffff"/>',
    ]
    for name, target, label in diagram.arrows:
        lines += _draw_arrow(boxes[name], boxes[target], label)
    for box in boxes.values():
        lines += _draw_box(box)
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    for name, diagram in DIAGRAMS.items():
        (Path(__file__).parent / f"{name}.svg").write_text(render(diagram), encoding="utf-8")
