"""The pixels of a view: what `views.draw` decided, done to one picture by OpenCV.

Colour as one affine map, geometry as one resampling, then noise and erasing; what a plan leaves
alone is not touched, so a neutral plan gives back the picture bit for bit.

OpenCV is used as it comes. How many threads it may use is a setting of the whole process, and
beside batches that are made side by side it makes no difference (measured at 96 to 400 px).
"""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

_NUM_STARTS = 2**20
"""Places in the noise sequence at which a view may start."""

_RGB_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)
_SCALE_CHROMA, _TURN_CHROMA = (
    np.linalg.inv(_RGB_TO_YIQ)[:, 1:] @ change @ _RGB_TO_YIQ[1:]
    for change in (np.eye(2), np.array([[0, -1], [1, 0]]))
)
"""What a chroma of (1 + re) + i·im adds to the identity, for re and for im, as RGB matrices."""

_IDENTITY = np.eye(3)
_NEUTRAL_WARP = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Plan:
    """What is done to a picture, as plain numbers; the defaults do nothing.

    `chroma` multiplies the colour I + iQ of YIQ, so its length is the saturation and its angle
    the hue; `contrast` is a factor on distances from the mean colour; `brightness`, `noise` (a
    standard deviation) are in 0-255; `noise_start` (0-1) says which noise. `warp` is the map
    a, b, c, d, x, y from view to picture and `box` the left, top, right and bottom of what is
    erased, both in sides of the picture.
    """

    chroma: complex = 1.0
    contrast: float = 1.0
    brightness: float = 0.0
    warp: tuple[float, ...] = _NEUTRAL_WARP
    noise: float = 0.0
    noise_start: float = 0.0
    box: tuple[float, ...] | None = None


def apply(image: np.ndarray, plan: Plan) -> np.ndarray:
    """Turn a picture, uint8 [S, S, 3], into a view, a new array of the same kind."""
    pixels = np.array(image)
    recolours = (plan.chroma, plan.contrast, plan.brightness) != (1, 1, 0)
    if recolours or plan.box:
        mean = np.array(cv2.mean(pixels)[:3])
        colour = _colour_map(plan, mean)
    if recolours:
        pixels = cv2.transform(pixels, colour)
    if plan.warp != _NEUTRAL_WARP:
        pixels = _warp(pixels, *plan.warp)
    if plan.noise:
        noise = _noise(plan.noise_start, pixels.shape)
        pixels = cv2.addWeighted(pixels, 1.0, noise, plan.noise, 0.0, dtype=cv2.CV_8U)
    if plan.box:
        # The mean of the picture's colours as the view shows them.
        _erase(pixels, plan.box, colour[:, :3] @ mean + colour[:, 3])
    return pixels


def _colour_map(plan: Plan, mean: np.ndarray) -> np.ndarray:
    """Saturation and hue, contrast and brightness as one affine map [3, 4] of RGB."""
    scale, turn = plan.chroma.real - 1, plan.chroma.imag
    mixing = _IDENTITY + scale * _SCALE_CHROMA + turn * _TURN_CHROMA
    colour = np.empty((3, 4))
    colour[:, :3] = plan.contrast * mixing
    colour[:, 3] = (1 - plan.contrast) * (mixing @ mean) + plan.brightness
    return colour


def _warp(
    pixels: np.ndarray, a: float, b: float, c: float, d: float, x: float, y: float
) -> np.ndarray:
    """Resample once, bilinearly. What lies outside the picture is its mirror image.

    A constant would frame it with straight edges that are the strongest in sight, repeating its
    border would draw streaks; neither saves more than an eighth of the time.
    """
    size = len(pixels)
    # OpenCV counts from the centre of the first pixel, where the picture's centre is at:
    centre = (size - 1) / 2
    right = size * x + centre - (a + b) * centre
    down = size * y + centre - (c + d) * centre
    return cv2.warpAffine(
        pixels,
        np.array([[a, b, right], [c, d, down]]),
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )


@functools.cache
def _normal_sequence(length: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(length, np.float32)


def _noise(start: float, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise: each view reads its own stretch of one long sequence.

    Fresh deviates would take as long as everything else a view needs, a stretch takes nothing;
    and two views hardly ever start at the same of the million places.
    """
    first, length = int(start * _NUM_STARTS), math.prod(shape)
    return _normal_sequence(_NUM_STARTS + length)[first : first + length].reshape(shape)


def _erase(pixels: np.ndarray, box: tuple[float, ...], colour: np.ndarray) -> None:
    """Fill the pixels whose middle lies in the box with a colour [3]."""
    left, top, right, bottom = (math.ceil(edge * len(pixels) - 0.5) for edge in box)
    pixels[top:bottom, left:right] = np.clip(np.rint(colour), 0, 255)
