"""What an explanation leaves: an overlay for every image, a CSV of all and a page to look at.

overlays/       000001_rose.png …, one for each image that could be read
explain.csv     one row a file: path, label, confidence, class explained, overlay, error
explain.html    the first images with their heat and likeliest classes, in one file
"""

import base64
import csv
import dataclasses
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from keras_transfer.data.records import BadFile
from keras_transfer.inference.explanation import Explanation
from keras_transfer.inference.overlays import draw_overlay, draw_panels, percent, printable
from keras_transfer.storage.atomic import check_vacant, replacing

PAGE, TABLE, OVERLAYS = "explain.html", "explain.csv", "overlays"
COLUMNS: Final = (
    "path",
    "label",
    "confidence",
    "explained",
    "explained_probability",
    "overlay",
    "error",
)

MOST_SHOWN: Final = 300
"""Images on the page, which are kept in memory and in one file; the CSV has all."""

_NUM_TOP: Final = 5
_SHOWN_SIDE: Final = 288
_LONGEST_NAME: Final = 60
_LOOK: Final = re.compile(r"/\* look: [^\n]*\n(.*)\n *?/\* end of look \*/", re.DOTALL)


@dataclass(frozen=True)
class ExplanationSummary:
    """How many images were explained, by label, and how many files could not be read."""

    num_by_label: dict[str, int]
    num_bad: int

    @property
    def num_explained(self) -> int:
        return sum(self.num_by_label.values())


@dataclass(frozen=True)
class _Shown:
    """One image on the page: `image` is a data URI, `top` names with percentages and widths."""

    path: str
    label: str
    confidence: str
    explained: str
    explained_probability: str
    explained_is_shown: bool
    is_blank: bool
    overlay: str
    image: str
    top: Sequence[tuple[str, str, str]]


@dataclass
class _Kept:
    """What the page will show, within limits."""

    shown: list[_Shown] = field(default_factory=list)
    bad: list[BadFile] = field(default_factory=list)

    def add(self, row: Explanation | BadFile, overlay: str) -> None:
        if isinstance(row, BadFile):
            if len(self.bad) < MOST_SHOWN:
                self.bad.append(BadFile(printable(row.path), row.reason))
        elif len(self.shown) < MOST_SHOWN:
            self.shown.append(_to_show(row, overlay))


def write_explanations(
    rows: Iterable[Explanation | BadFile],
    output: Path,
    *,
    name: str,
    class_names: Sequence[str],
) -> ExplanationSummary:
    """Write overlays, table and page into the new folder `output`, as the rows come.

    The folder appears complete or not at all. Memory is bounded: the page shows the first
    `MOST_SHOWN` images and as many bad files.

    Args:
        name: of the run, for the page's title.

    Raises:
        RunError: `output` exists already or cannot be written, or the disk is full.
    """
    check_vacant(output)
    counts: Counter[str] = Counter()
    kept, num_bad = _Kept(), 0
    with replacing(output) as folder:
        (folder / OVERLAYS).mkdir(parents=True)
        with (folder / TABLE).open(
            "w", newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            numbers = itertools.count(1)
            for row in rows:
                overlay = ""
                if isinstance(row, BadFile):
                    num_bad += 1
                else:
                    counts[row.label] += 1
                    overlay = f"{OVERLAYS}/{next(numbers):06d}_{_plain(row.path)}.png"
                    # Stronger compression would take longer than everything else.
                    draw_overlay(row).save(folder / overlay, compress_level=1)
                writer.writerow(_table_row(row, overlay))
                kept.add(row, overlay)
        summary = ExplanationSummary({label: counts[label] for label in class_names}, num_bad)
        _write_page(folder / PAGE, kept, summary, name=name)
    return summary


def _table_row(row: Explanation | BadFile, overlay: str) -> list[Any]:
    if isinstance(row, BadFile):
        return [row.path, "", "", "", "", "", row.reason]
    # float32 prints with as few digits as tell it from its neighbours.
    confidence, explained = row.probabilities.max(), row.probabilities[row.class_index]
    return [row.path, row.label, confidence, row.explained, explained, overlay, ""]


def _write_page(file: Path, kept: _Kept, summary: ExplanationSummary, *, name: str) -> None:
    environment = Environment(
        loader=PackageLoader("keras_transfer.inference"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    stream = environment.get_template(PAGE).stream(
        name=printable(name),
        num_explained=summary.num_explained,
        num_bad=summary.num_bad,
        counts=[(printable(x), count) for x, count in summary.num_by_label.items() if count],
        table=TABLE,
        preview=_look(),
        **{entry.name: getattr(kept, entry.name) for entry in dataclasses.fields(kept)},
    )
    with file.open("w", encoding="utf-8") as out:
        out.writelines(stream)


def _look() -> str:
    """The style that this page shares with the server's, which has to be one file."""
    page = resources.files("keras_transfer.serving").joinpath("page.html")
    found = _LOOK.search(page.read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def _to_show(explanation: Explanation, overlay: str) -> _Shown:
    buffer = io.BytesIO()
    draw_panels(explanation, side=_SHOWN_SIDE).save(buffer, "WEBP", quality=80)
    image = base64.b64encode(buffer.getvalue()).decode()
    top = explanation.top(_NUM_TOP)
    return _Shown(
        path=printable(explanation.path),
        label=printable(explanation.label),
        confidence=percent(explanation.confidence),
        explained=printable(explanation.explained),
        explained_probability=percent(explanation.explained_probability),
        explained_is_shown=explanation.explained in dict(top),
        is_blank=explanation.is_blank,
        overlay=overlay,
        image=f"data:image/webp;base64,{image}",
        top=[(printable(name), percent(share), f"{100 * share:.2f}") for name, share in top],
    )


def _plain(path: str) -> str:
    """An image's name in letters that every file system and address can hold."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(path).stem)[:_LONGEST_NAME].strip("-") or "image"
