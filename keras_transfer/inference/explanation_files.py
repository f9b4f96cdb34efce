"""Files of explanations: an overlay for every image, a table of all, and an HTML page.

overlays/       000001_rose.png …, one for each image that could be read
explain.csv     one row per file: path, prediction, explained output, overlay, error
explain.html    the first images with their heat maps and highest outputs, in one file

Heat maps are drawn in matplotlib's inferno over a darkened grey image: hotter is lighter, for all
colours of the image and also for colour-blind readers.
"""

import base64
import csv
import dataclasses
import functools
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageFont

from keras_transfer.data.images import LUMA, shown
from keras_transfer.data.records import BadFile
from keras_transfer.inference.explanation import Explanation
from keras_transfer.reporting.figures import FAINT, INK
from keras_transfer.storage.atomic import check_vacant, replacing
from keras_transfer.storage.cells import spreadsheet_cell
from keras_transfer.tasks.task import Task

PAGE, TABLE, OVERLAYS = "explain.html", "explain.csv", "overlays"
MOST_SHOWN: Final = 300
"""Maximum number of images on the page, which is one file in memory; the CSV has all."""

_NUM_TOP: Final = 5
_SHOWN_SIDE: Final = 288
_LONGEST_NAME: Final = 60
_STYLE: Final = re.compile(r"/\* look: [^\n]*\n(.*)\n *?/\* end of look \*/", re.DOTALL)


SIDE: Final = 384
"""Side of each of the two panels, px."""

_FEW_PIXELS: Final = 64
_LUMA: Final = np.array(LUMA, np.float32)
_DARKER: Final = 0.65
# With less, low heat would be darker than no heat on a white image.
_LEAST, _MORE = 0.3, 0.45

_MARGIN, _GAP = 20, 12
_HEAD, _FOOT = 44, 40
_BAR: Final = (120, 10)
_BOLD, _PLAIN = ("DejaVuSans-Bold.ttf", 19), ("DejaVuSans.ttf", 14)
_Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class ExplanationSummary:
    """Number of explained images, also by label, and of files that could not be read."""

    num_by_label: dict[str, int]
    num_explained: int
    num_bad: int


@dataclass(frozen=True)
class _Shown:
    """One image on the page: `image` is a data URI, `top` names with outputs and widths."""

    path: str
    label: str
    confidence: str
    explained: str
    explained_output: str
    explained_is_shown: bool
    is_blank: bool
    overlay: str
    image: str
    top: Sequence[tuple[str, str, str]]


@dataclass
class _Kept:
    """The images and bad files of the page, up to fixed numbers."""

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
    task: Task,
) -> ExplanationSummary:
    """Write overlays, table and page into the new folder `output` while rows are computed.

    The folder appears only when complete. Memory is bounded: the page shows the first
    `MOST_SHOWN` images and as many bad files.

    Args:
        name: name of the run, for the page's title.
        task: the task of the outputs.

    Raises:
        RunError: `output` exists already or cannot be written, or the disk is full.
    """
    check_vacant(output)
    counts: Counter[str] = Counter()
    kept, num_bad, num_explained = _Kept(), 0, 0
    with replacing(output) as folder:
        (folder / OVERLAYS).mkdir(parents=True)
        with (folder / TABLE).open(
            "w", newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(map(spreadsheet_cell, table_columns(task)))
            for row in rows:
                overlay = ""
                if isinstance(row, BadFile):
                    num_bad += 1
                else:
                    counts.update(row.labels)
                    num_explained += 1
                    overlay = f"{OVERLAYS}/{num_explained:06d}_{_plain(row.path)}.png"
                    # Stronger compression would take longer than everything else.
                    draw_overlay(row).save(folder / overlay, compress_level=1)
                writer.writerow(map(spreadsheet_cell, _table_row(row, overlay, task)))
                kept.add(row, overlay)
        num_by_label = {label: counts[label] for label in task.decidable}
        summary = ExplanationSummary(num_by_label, num_explained, num_bad)
        _write_page(folder / PAGE, kept, summary, name=name)
    return summary


def table_columns(task: Task) -> list[str]:
    """Columns of explain.csv; the prediction has the task's columns without its K outputs."""
    is_share = task.activation in ("softmax", "sigmoid")
    explained = "explained_probability" if is_share else "explained_value"
    predicted = task.columns()[: -len(task.names)]
    return ["path", *predicted, "explained", explained, "overlay", "error"]


def _table_row(row: Explanation | BadFile, overlay: str, task: Task) -> list[Any]:
    if isinstance(row, BadFile):
        return [row.path, *[""] * (len(table_columns(task)) - 2), row.reason]
    # float32 is written with the fewest digits that give the same value when read.
    predicted = task.row(row.outputs)[: -len(task.names)]
    return [row.path, *predicted, row.explained, row.outputs[row.class_index], overlay, ""]


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
        style=_shared_style(),
        **{entry.name: getattr(kept, entry.name) for entry in dataclasses.fields(kept)},
    )
    with file.open("w", encoding="utf-8") as out:
        out.writelines(stream)


def _shared_style() -> str:
    """The CSS shared with the server's page, which is a single file."""
    page = resources.files("keras_transfer.serving").joinpath("page.html")
    found = _STYLE.search(page.read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def _to_show(explanation: Explanation, overlay: str) -> _Shown:
    buffer = io.BytesIO()
    draw_panels(explanation, side=_SHOWN_SIDE).save(buffer, "WEBP", quality=80)
    image = base64.b64encode(buffer.getvalue()).decode()
    top, show = explanation.top(_NUM_TOP), explanation.format_output
    # Bars show probabilities; other values have no maximum.
    longest = 0 if explanation.is_value else 100
    return _Shown(
        path=printable(explanation.path),
        label=printable(explanation.label),
        confidence=show(explanation.confidence),
        explained=printable(explanation.explained),
        explained_output=show(explanation.explained_output),
        explained_is_shown=explanation.explained in dict(top),
        is_blank=explanation.is_blank,
        overlay=overlay,
        image=f"data:image/webp;base64,{image}",
        top=[(printable(name), show(share), f"{longest * share:.2f}") for name, share in top],
    )


def _plain(path: str) -> str:
    """An image's name with only characters that every file system and URL supports."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(path).stem)[:_LONGEST_NAME].strip("-") or "image"


def blend(pixels: np.ndarray, heat: np.ndarray, *, side: int = SIDE) -> np.ndarray:
    """The image in dark grey, coloured by heat, uint8 [side, side, 3].

    Args:
        pixels: uint8 [S, S, C].
        heat: float32 [h, w] in 0-1, spread smoothly over the image.
    """
    grey = _DARKER * (_enlarged(pixels, side).astype(np.float32) @ _LUMA)[..., np.newaxis]
    smooth = Image.fromarray(heat).resize((side, side), Image.Resampling.BICUBIC)
    spread = np.clip(np.asarray(smooth), 0, 1)  # cubic curves overshoot
    share = (_LEAST + _MORE * spread)[..., np.newaxis]
    blended: np.ndarray = np.round((1 - share) * grey + share * _colours(spread))
    return blended.astype(np.uint8)


def draw_panels(
    explanation: Explanation, *, side: int, gap: int = 0, ground: str = "black"
) -> Image.Image:
    """The image and, to the right, its heat; without text."""
    panels = Image.new("RGB", (2 * side + gap, side), ground)
    panels.paste(Image.fromarray(_enlarged(explanation.pixels, side)))
    heat = blend(explanation.pixels, explanation.heat, side=side)
    panels.paste(Image.fromarray(heat), (side + gap, 0))
    return panels


def draw_overlay(explanation: Explanation) -> Image.Image:
    """Both panels with a caption: prediction, explained output, and their numbers."""
    size = (2 * (_MARGIN + SIDE) + _GAP, _HEAD + SIDE + _FOOT)
    card = Image.new("RGB", size, "white")
    left, right = _MARGIN, _MARGIN + SIDE + _GAP
    card.paste(draw_panels(explanation, side=SIDE, gap=_GAP, ground="white"), (left, _HEAD))
    pen = ImageDraw.Draw(card)
    head, foot = _HEAD - 14, _HEAD + SIDE + 22
    show = explanation.format_output
    _write(pen, (left, head), explanation.label, show(explanation.confidence), font=_BOLD)
    where = "no evidence for" if explanation.is_blank else "evidence for"
    # The number of the prediction is already in the left panel.
    is_label = explanation.explained == explanation.label
    share = "" if is_label else show(explanation.explained_output)
    _write(pen, (right, head), f"{where} {explanation.explained}", share)
    name = Path(explanation.path).name
    _write(pen, (left, foot), name, colour=FAINT)
    _draw_scale(card, pen, right, foot)
    return card


def printable(text: str) -> str:
    """Text without lone surrogates and line breaks, which fonts and UTF-8 do not support."""
    clean = text.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else "�" for letter in clean)


def _draw_scale(card: Image.Image, pen: ImageDraw.ImageDraw, left: int, line: int) -> None:
    width, height = _BAR
    words = ("no heat", "most heat")
    start = left + round(_font(*_PLAIN).getlength(words[0])) + 8
    ramp = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    card.paste(Image.fromarray(np.uint8(_colours(ramp))), (start, line - height // 2 - 4))
    _write(pen, (left, line), words[0], colour=FAINT)
    _write(pen, (start + width + 8, line), words[1], colour=FAINT)


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    number: str = "",
    *,
    font: tuple[str, int] = _PLAIN,
    colour: str = INK,
) -> None:
    """One line on the baseline `place`, as wide as a panel: long names are cut in the middle."""
    face = _font(*font)
    after = f"  {number}" if number else ""
    fitted = _fitted(printable(text), face, SIDE - face.getlength(after))
    pen.text(place, fitted + after, fill=colour, font=face, anchor="ls")


def _fitted(text: str, face: _Font, width: float) -> str:
    keep = min(len(text), SIDE)  # no letter is narrower than a pixel
    shown = text if keep == len(text) else _shortened(text, keep)
    while face.getlength(shown) > width:
        keep = min(keep - 1, int(keep * width / face.getlength(shown)) + 1)
        shown = _shortened(text, keep)
    return shown


def _shortened(text: str, keep: int) -> str:
    tail = keep // 3
    return f"{text[: keep - tail]}…{text[len(text) - tail :]}"


@functools.cache
def _font(name: str, size: int) -> _Font:
    # matplotlib's own font: every machine has it, and it covers more than Latin letters.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _colours(heat: np.ndarray) -> np.ndarray:
    """Inferno of heat in 0-1, float in 0-255 [.., 3]."""
    colours: np.ndarray = 255 * matplotlib.colormaps["inferno"](heat)[..., :3]
    return colours


def _enlarged(pixels: np.ndarray, side: int) -> np.ndarray:
    """The square scaled to a panel, in RGB; a few pixels stay visible as squares."""
    few = len(pixels) < _FEW_PIXELS
    method = Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(shown(pixels)).resize((side, side), method))
