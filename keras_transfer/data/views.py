"""Views: augmented images that are pure functions of (image, example id, view number, spec).

`draw` turns an example id and a view number into a `Plan` of a few numbers; `apply` changes the
image with OpenCV. The result depends on nothing else: not on the run, the time, the batch or the
thread. So a view can be cached, and made again later with the same bits.

Colour is one affine map, geometry one resampling; noise and erasing follow. A step that a plan
does not use is skipped, so a neutral plan returns the image bit for bit.

OpenCV's number of threads is a setting of the whole process and is not changed: with batches made
in parallel it makes no difference (measured at 96 to 400 px).
"""

import cmath
import dataclasses
import functools
import math
import warnings
from dataclasses import dataclass

import cv2
import numpy as np

from keras_transfer.specs import COLOURS, ViewSpec

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

_NEUTRAL_WARP = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Plan:
    """The changes to an image, as numbers; the defaults change nothing.

    `chroma` multiplies the colour I + iQ of YIQ, so its length is the saturation and its angle
    the hue; `contrast` is a factor on distances from the mean colour; `brightness`, `noise` (a
    standard deviation) are in 0-255; `noise_start` (0-1) selects the noise. `warp` is the map
    a, b, c, d, x, y from view to image and `box` the left, top, right and bottom of the erased
    box, both in units of the image's side.
    """

    chroma: complex = 1.0
    contrast: float = 1.0
    brightness: float = 0.0
    warp: tuple[float, ...] = _NEUTRAL_WARP
    noise: float = 0.0
    noise_start: float = 0.0
    box: tuple[float, ...] | None = None


def apply(image: np.ndarray, plan: Plan) -> np.ndarray:
    """Turn an image, uint8 [S, S, C], into a view, a new array of the same kind.

    Where C is not 3, the plan's chroma must be 1.
    """
    pixels = np.array(image)
    recolours = (plan.chroma, plan.contrast, plan.brightness) != (1, 1, 0)
    if recolours or plan.box:
        # OpenCV means no more than 4 channels; of 3, the views keep the bits of its sums.
        is_rgb = pixels.shape[2] == COLOURS
        mean = np.array(cv2.mean(pixels)[:3]) if is_rgb else pixels.mean(axis=(0, 1))
        colour = _colour_map(plan, mean)
    if recolours:
        pixels = cv2.transform(pixels, colour)
    if plan.warp != _NEUTRAL_WARP:
        pixels = _warp_pixels(pixels, *plan.warp)
    pixels = pixels.reshape(image.shape)  # OpenCV leaves out an axis of one channel.
    if plan.noise:
        noise = _noise(plan.noise_start, pixels.shape)
        pixels = cv2.addWeighted(pixels, 1.0, noise, plan.noise, 0.0, dtype=cv2.CV_8U)
        pixels = pixels.reshape(image.shape)
    if plan.box:
        # The mean of the image's colours as the view shows them.
        _erase(pixels, plan.box, colour[:, :-1] @ mean + colour[:, -1])
    return pixels


def _colour_map(plan: Plan, mean: np.ndarray) -> np.ndarray:
    """Saturation and hue, contrast and brightness as one affine map [C, C + 1] of a pixel."""
    channels = len(mean)
    mixing = np.eye(channels)
    if channels == COLOURS:
        scale, turn = plan.chroma.real - 1, plan.chroma.imag
        mixing = mixing + scale * _SCALE_CHROMA + turn * _TURN_CHROMA
    colour = np.empty((channels, channels + 1))
    colour[:, :-1] = plan.contrast * mixing
    colour[:, -1] = (1 - plan.contrast) * (mixing @ mean) + plan.brightness
    return colour


def _warp_pixels(
    pixels: np.ndarray, a: float, b: float, c: float, d: float, x: float, y: float
) -> np.ndarray:
    """Resample once, bilinearly. The area outside the image is filled with its reflection.

    A constant colour would add strong straight edges, and repeating the border would add streaks;
    neither saves more than an eighth of the time.
    """
    size = len(pixels)
    # OpenCV counts from the centre of the first pixel, where the image's centre is at:
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
    """Standard normal noise: each view reads its own part of one long sequence.

    Drawing new numbers would take as long as the rest of a view, and reading takes no time. Two
    views hardly ever start at the same of the million places.
    """
    first, length = int(start * _NUM_STARTS), math.prod(shape)
    return _normal_sequence(_NUM_STARTS + length)[first : first + length].reshape(shape)


def _erase(pixels: np.ndarray, box: tuple[float, ...], colour: np.ndarray) -> None:
    """Fill the pixels whose centre is in the box with a colour [C]."""
    left, top, right, bottom = (math.ceil(edge * len(pixels) - 0.5) for edge in box)
    pixels[top:bottom, left:right] = np.clip(np.rint(colour), 0, 255)


VERSION = f"1, OpenCV {cv2.__version__}"
"""What a view's pixels depend on besides its arguments; it is part of cache keys.

Increase the number whenever the pixels of any view change. Releases of OpenCV round differently.
"""

_OFF: dict[str, bool | float] = {
    "horizontal_flip": False,
    "vertical_flip": False,
    "rotation": 0.0,
    "zoom": 0.0,
    "translation": 0.0,
    "crop_area": 1.0,
    "crop_aspect": 4 / 3,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "noise": 0.0,
    "erasing": 0.0,
    "erasing_area": 0.2,
}
_LIGHT: dict[str, bool | float] = {
    **_OFF,
    "horizontal_flip": True,
    "rotation": 10.0,
    "zoom": 0.1,
    "translation": 0.05,
    "brightness": 0.1,
    "contrast": 0.1,
}
_STRONG: dict[str, bool | float] = {
    **_LIGHT,
    "rotation": 15.0,
    "crop_area": 0.5,
    "brightness": 0.15,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.03,
    "noise": 5.0,
    "erasing": 0.25,
}
POLICIES: dict[str, dict[str, bool | float]] = {"none": _OFF, "light": _LIGHT, "strong": _STRONG}
"""Default strengths of each policy, for photographs that keep their class when mirrored."""

_SMALLEST_BOX = 0.02
"""Smallest share of the image an erased box covers; smaller ones hide nothing."""


def strengths(spec: ViewSpec, channels: int = COLOURS) -> ViewSpec:
    """The same spec with every None replaced by its policy's value.

    Saturation and hue are changes of red, green and blue: they are off for other channels.
    Warns about a strength that was set but has no effect because its part is off (not for a spec
    that this function returned, which sets all of them).
    """
    given = {name: value for name, value in dataclasses.asdict(spec).items() if value is not None}
    resolved = dataclasses.replace(spec, **{**POLICIES[spec.policy], **given})
    if channels != COLOURS:
        resolved = dataclasses.replace(resolved, saturation=0.0, hue=0.0)
    for name, owner, off in (("crop_aspect", "crop_area", 1), ("erasing_area", "erasing", 0)):
        if name in given and getattr(resolved, owner) == off and resolved != spec:
            warnings.warn(f"views.{name} has no effect while views.{owner} = {off:g}", stacklevel=2)
    return resolved


def view(image: np.ndarray, example_id: int, view_index: int, *, strengths: ViewSpec) -> np.ndarray:
    """One view of one image: the plain image for view 0, an augmented one for any other.

    Args:
        image: uint8 [S, S, C].
        example_id: 63-bit number of the image (`Record.example_id`).
        view_index: 0 or more.
        strengths: a spec without None, as `strengths()` returns it. The view depends on its seed,
            but not on the policy's name or the number of views.

    Returns:
        A new uint8 [S, S, C]; the same bits for the same arguments in any process, thread, batch
        or order.
    """
    return apply(image, draw(example_id, view_index, strengths=strengths))


def draw(example_id: int, view_index: int, *, strengths: ViewSpec) -> Plan:
    """The plan of a view; view 0 is the plain image.

    All random numbers are always drawn, in the same order, so that changing one strength does not
    change the other parts of any view.
    """
    if view_index == 0:
        return Plan()
    names, low, span = _ranges(strengths)
    uniform = np.random.Generator(_bits(example_id, view_index, strengths.seed)).random(len(names))
    value = dict(zip(names, (low + span * uniform).tolist(), strict=True))
    return Plan(
        chroma=cmath.rect(value["saturation"], value["hue"]),
        contrast=value["contrast"],
        brightness=value["brightness"],
        warp=_warp(value),
        noise=value["noise"],
        noise_start=value["noise_start"],
        box=_box(value) if value["erased"] > 0 else None,
    )


def _bits(example_id: int, view_index: int, seed: int) -> np.random.Philox:
    """Random bits from the 128-bit key of one view, [example_id, hash(seed) + view_index].

    The first half is the example id, so all its 63 bits matter; for one seed no two (example,
    view) pairs share a key. Philox mixes all 128 bits.
    """
    key = [int(example_id), _seed_offset(seed) + int(view_index)]
    return np.random.Philox(key=np.array(key, np.uint64))


@functools.cache
def _seed_offset(seed: int) -> int:
    """A 62-bit hash of the seed; adding a view number cannot overflow 64 bits."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(2))


@functools.cache
def _ranges(strengths: ViewSpec) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names, lower bounds and widths of the ranges of a view's random numbers."""
    s = {name: float(getattr(strengths, name)) for name in _OFF}
    angle, hue = math.radians(s["rotation"]), 2 * math.pi * s["hue"]
    shift, aspect = s["translation"], math.log(s["crop_aspect"])
    ranges = {
        "mirror_x": (1 - 2 * s["horizontal_flip"], 1),
        "mirror_y": (1 - 2 * s["vertical_flip"], 1),
        "angle": (-angle, angle),
        "scale": (1 - s["zoom"], 1 + s["zoom"]),
        "shift_x": (-shift, shift),
        "shift_y": (-shift, shift),
        "crop_area": (s["crop_area"], 1),
        "crop_log_aspect": (-aspect, aspect),
        "crop_x": (-0.5, 0.5),
        "crop_y": (-0.5, 0.5),
        "brightness": (-255 * s["brightness"], 255 * s["brightness"]),
        "contrast": (1 - s["contrast"], 1 + s["contrast"]),
        "saturation": (1 - s["saturation"], 1 + s["saturation"]),
        "hue": (-hue, hue),
        "noise": (s["noise"], s["noise"]),
        "noise_start": (0, 1),
        "erased": (s["erasing"], s["erasing"] - 1),
        "box_area": (min(_SMALLEST_BOX, s["erasing_area"]), s["erasing_area"]),
        "box_log_aspect": (-math.log(3), math.log(3)),
        "box_x": (0, 1),
        "box_y": (0, 1),
    }
    low, high = np.array(list(ranges.values()), np.float64).T
    return tuple(ranges), low, high - low


def _warp(value: dict[str, float]) -> tuple[float, ...]:
    """Flip, zoom, crop, rotation and shift as one affine map, from view to image.

    With points measured from the centre in sides: image = [[a, b], [c, d]] · view + [x, y].
    """
    # A wider aspect than 1/area would not fit into the image.
    limit = -math.log(value["crop_area"])
    half = 0.5 * min(max(value["crop_log_aspect"], -limit), limit)
    size = math.sqrt(value["crop_area"])
    width, height = size * math.exp(half), size * math.exp(-half)
    across = math.copysign(width, value["mirror_x"]) / value["scale"]
    down = math.copysign(height, value["mirror_y"]) / value["scale"]
    cos, sin = math.cos(value["angle"]), math.sin(value["angle"])
    x = value["crop_x"] * (1 - width) + value["shift_x"]
    y = value["crop_y"] * (1 - height) + value["shift_y"]
    return cos * across, -sin * down, sin * across, cos * down, x, y


def _box(value: dict[str, float]) -> tuple[float, ...]:
    """Left, top, right and bottom of the erased box in sides."""
    size, half = math.sqrt(value["box_area"]), 0.5 * value["box_log_aspect"]
    width, height = min(size * math.exp(half), 1), min(size * math.exp(-half), 1)
    left, top = value["box_x"] * (1 - width), value["box_y"] * (1 - height)
    return left, top, left + width, top + height
