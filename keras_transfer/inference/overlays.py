"""An explanation as an image: the square the network sees, and the heat of one class over it.

Colours are matplotlib's inferno over a darkened grey: what is hotter is lighter, whatever the
image's own colours and whoever looks at it.
"""

import functools
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_transfer.inference.explanation import Explanation
from keras_transfer.reporting.figures import FAINT, INK

SIDE: Final = 384
"""Of each of the two panels, px."""

_FEW_PIXELS: Final = 64
_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)
_DARKER: Final = 0.65
# With less, low heat would be darker than none where the image is white.
_LEAST, _MORE = 0.3, 0.45

_MARGIN, _GAP = 20, 12
_HEAD, _FOOT = 44, 40
_BAR: Final = (120, 10)
_BOLD, _PLAIN = ("DejaVuSans-Bold.ttf", 19), ("DejaVuSans.ttf", 14)
_Font = ImageFont.FreeTypeFont


def blend(pixels: np.ndarray, heat: np.ndarray, *, side: int = SIDE) -> np.ndarray:
    """The image in darkened grey, coloured by heat, uint8 [side, side, 3].

    Args:
        pixels: uint8 [S, S, 3].
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
    """The image and, right of it, its heat; no words."""
    panels = Image.new("RGB", (2 * side + gap, side), ground)
    panels.paste(Image.fromarray(_enlarged(explanation.pixels, side)))
    heat = blend(explanation.pixels, explanation.heat, side=side)
    panels.paste(Image.fromarray(heat), (side + gap, 0))
    return panels


def draw_overlay(explanation: Explanation) -> Image.Image:
    """Both panels with a caption: the likeliest class, the one explained, their probabilities."""
    size = (2 * (_MARGIN + SIDE) + _GAP, _HEAD + SIDE + _FOOT)
    card = Image.new("RGB", size, "white")
    left, right = _MARGIN, _MARGIN + SIDE + _GAP
    card.paste(draw_panels(explanation, side=SIDE, gap=_GAP, ground="white"), (left, _HEAD))
    pen = ImageDraw.Draw(card)
    head, foot = _HEAD - 14, _HEAD + SIDE + 22
    _write(pen, (left, head), explanation.label, explanation.confidence, font=_BOLD)
    where = "nothing speaks for" if explanation.is_blank else "what speaks for"
    # The likeliest class's probability stands on the left already.
    share = (
        None if explanation.explained == explanation.label else explanation.explained_probability
    )
    _write(pen, (right, head), f"{where} {explanation.explained}", share)
    name = Path(explanation.path).name
    _write(pen, (left, foot), name, colour=FAINT)
    _draw_scale(card, pen, right, foot)
    return card


def percent(probability: float) -> str:
    """A probability as it is shown, such as 98.1 %; what is nearly certain is not made so."""
    if 0 < probability < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= probability < 1 else f"{100 * probability:.1f} %"


def printable(text: str) -> str:
    """Text without what no font and no UTF-8 file can hold: half surrogates, line breaks."""
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
    probability: float | None = None,
    *,
    font: tuple[str, int] = _PLAIN,
    colour: str = INK,
) -> None:
    """One line on the baseline `place`, as wide as a panel: long names lose their middle."""
    face = _font(*font)
    after = "" if probability is None else f"  {percent(probability)}"
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
    # matplotlib's own: every machine has it, and it knows more than Latin letters.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _colours(heat: np.ndarray) -> np.ndarray:
    """Inferno of heat in 0-1, float in 0-255 [.., 3]."""
    colours: np.ndarray = 255 * matplotlib.colormaps["inferno"](heat)[..., :3]
    return colours


def _enlarged(pixels: np.ndarray, side: int) -> np.ndarray:
    """The square as large as a panel; few pixels stay squares, as the network has them."""
    few = len(pixels) < _FEW_PIXELS
    method = Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((side, side), method))
