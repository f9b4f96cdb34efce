"""Views: augmented pictures that are pure functions of (picture, example, view number, seed).

A view is made in two halves. `draw` runs once an example and turns three numbers into a handful
of small tensors with ONE stateless random operation; `view_pixels.apply` runs once a batch and
does the heavy work with them. Whatever is not plain arithmetic (roots, sines, exponentials)
happens in `draw`, on tensors of fixed shape: vectorised kernels may round such functions
differently for different batch sizes, and a view must not depend on its neighbours.
"""

import dataclasses
import math
import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from keras_transfer.data.view_pixels import apply
from keras_transfer.specs import ViewSpec

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
"""Default strengths of each policy, for photographs whose mirror image means the same."""

_SMALLEST_BOX = 0.02
"""Smallest share of the picture an erased box covers; smaller ones hide nothing."""

_RGB_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)
_CHROMA_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)[:, 1:].astype(np.float32)
_RGB_TO_CHROMA = _RGB_TO_YIQ[1:].astype(np.float32)


def strengths(spec: ViewSpec) -> ViewSpec:
    """The same spec with every None replaced by its policy's value.

    Warns about a strength that was given but has no effect because the part it belongs to is off
    (a spec that gives everything, as this function returns, passes in silence).
    """
    given = {name: value for name, value in dataclasses.asdict(spec).items() if value is not None}
    resolved = dataclasses.replace(spec, **{**POLICIES[spec.policy], **given})
    for name, owner, off in (("crop_aspect", "crop_area", 1), ("erasing_area", "erasing", 0)):
        if name in given and getattr(resolved, owner) == off and resolved != spec:
            warnings.warn(f"views.{name} has no effect while views.{owner} = {off:g}", stacklevel=2)
    return resolved


def view(
    image: Any, example_id: Any, view_index: Any, seed: int, *, strengths: ViewSpec
) -> tf.Tensor:
    """One view of one picture: the plain picture for view 0, an augmented one for any other.

    Args:
        image: [S, S, 3], 0-255, any numeric type.
        example_id: 63-bit number of the picture (`Record.example_id`).
        view_index: 0 or more.
        seed: 0 or more.
        strengths: a spec without None, as `strengths(spec)` returns.

    Returns:
        float32 [S, S, 3] in 0-255; the same bits for the same arguments, eager or in a graph,
        alone or in a batch, in any process and under any parallel map.
    """
    # Other devices round differently; Dataset.map runs on the CPU, so a view always does.
    with tf.device("CPU:0"):
        parameters = draw(example_id, view_index, seed, strengths=strengths)
        batch = {name: value[None] for name, value in parameters.items()}
        return apply(tf.convert_to_tensor(image)[None], batch)[0]


def draw(
    example_id: Any, view_index: Any, seed: int, *, strengths: ViewSpec
) -> dict[str, tf.Tensor]:
    """What will be done to one picture: small tensors for `view_pixels.apply`.

    Parts that are off in `strengths` have no entry. Each part has its own random number, so that
    changing one strength leaves the other parts of every view as they were. For view 0 all
    entries are neutral: applied, they give back the picture bit for bit.
    """
    ranges = _ranges(strengths)
    low, high, neutral = np.array(list(ranges.values()), np.float32).T
    uniform = tf.random.stateless_uniform(
        [len(ranges)], _stateless_seed(example_id, view_index, seed), alg="philox"
    )
    drawn = tf.where(tf.convert_to_tensor(view_index) > 0, low + (high - low) * uniform, neutral)
    value = dict(zip(ranges, tf.unstack(drawn), strict=True))
    parameters = {}
    if _warps(strengths):
        parameters["warp"] = _warp(value)
    if strengths.saturation or strengths.hue:
        parameters["mixing"] = _mixing(value["saturation"], value["hue"])
    if strengths.contrast:
        parameters["contrast"] = value["contrast"]
    if strengths.brightness:
        parameters["brightness"] = value["brightness"]
    if strengths.noise:
        parameters["noise_scale"] = value["noise_scale"]
        parameters["noise_start"] = value["noise_start"]
    if strengths.erasing:
        parameters["box"] = _box(value)
    return parameters


def _stateless_seed(example_id: Any, view_index: Any, seed: int) -> tf.Tensor:
    """The 128-bit key of one view: [example_id, hash(seed) + view_index].

    The first half is the example id itself, so all its 63 bits matter; within one seed no two
    (example, view) share a key. The 62-bit hash keeps the views of neighbouring seeds apart and
    leaves room for the sum. Philox, which the key feeds, mixes all 128 bits.
    """
    offset = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(2))
    return tf.stack([tf.cast(example_id, tf.int64), offset + tf.cast(view_index, tf.int64)])


def _ranges(strengths: ViewSpec) -> dict[str, tuple[float, float, float]]:
    """(low, high, neutral) of every random number of a view, always all and in this order."""
    s = {
        name: float(value)
        for name, value in dataclasses.asdict(strengths).items()
        if name != "policy"
    }
    angle, hue = math.radians(s["rotation"]), 2 * math.pi * s["hue"]
    shift, aspect = s["translation"], math.log(s["crop_aspect"])
    return {
        "mirror_x": (1 - 2 * s["horizontal_flip"], 1, 1),
        "mirror_y": (1 - 2 * s["vertical_flip"], 1, 1),
        "angle": (-angle, angle, 0),
        "scale": (1 - s["zoom"], 1 + s["zoom"], 1),
        "shift_x": (-shift, shift, 0),
        "shift_y": (-shift, shift, 0),
        "crop_area": (s["crop_area"], 1, 1),
        "crop_log_aspect": (-aspect, aspect, 0),
        "crop_x": (-0.5, 0.5, 0),
        "crop_y": (-0.5, 0.5, 0),
        "brightness": (-255 * s["brightness"], 255 * s["brightness"], 0),
        "contrast": (1 - s["contrast"], 1 + s["contrast"], 1),
        "saturation": (1 - s["saturation"], 1 + s["saturation"], 1),
        "hue": (-hue, hue, 0),
        "noise_scale": (s["noise"], s["noise"], 0),
        "noise_start": (0, 1, 0),
        "erased": (s["erasing"], s["erasing"] - 1, -1),
        "box_area": (min(_SMALLEST_BOX, s["erasing_area"]), s["erasing_area"], 0),
        "box_log_aspect": (-math.log(3), math.log(3), 0),
        "box_x": (0, 1, 0),
        "box_y": (0, 1, 0),
    }


def _warps(strengths: ViewSpec) -> bool:
    flips = strengths.horizontal_flip or strengths.vertical_flip
    moves = strengths.rotation or strengths.zoom or strengths.translation
    return bool(flips or moves or strengths.crop_area != 1)


def _warp(value: dict[str, tf.Tensor]) -> tf.Tensor:
    """Flip, zoom, crop, rotation and shift as one affine map [6], from view to picture.

    With points measured from the centre in sides: picture = [[a, b], [c, d]] · view + [x, y].
    """
    # A wider aspect than 1/area would not fit into the picture.
    limit = -tf.math.log(value["crop_area"])
    half = 0.5 * tf.clip_by_value(value["crop_log_aspect"], -limit, limit)
    size = tf.sqrt(value["crop_area"])
    width, height = size * tf.exp(half), size * tf.exp(-half)
    across = tf.where(value["mirror_x"] < 0, -width, width) / value["scale"]
    down = tf.where(value["mirror_y"] < 0, -height, height) / value["scale"]
    cos, sin = tf.cos(value["angle"]), tf.sin(value["angle"])
    x = value["crop_x"] * (1 - width) + value["shift_x"]
    y = value["crop_y"] * (1 - height) + value["shift_y"]
    return tf.stack([cos * across, -sin * down, sin * across, cos * down, x, y])


def _mixing(saturation: tf.Tensor, hue: tf.Tensor) -> tf.Tensor:
    """The RGB matrix [3, 3] that scales and turns chroma in YIQ and leaves luma alone.

    Written as identity plus a change that is exactly zero where nothing is drawn.
    """
    cos, sin = saturation * tf.cos(hue), saturation * tf.sin(hue)
    change = tf.stack([[cos - 1, -sin], [sin, cos - 1]])
    return tf.eye(3) + _CHROMA_TO_RGB @ change @ _RGB_TO_CHROMA


def _box(value: dict[str, tf.Tensor]) -> tf.Tensor:
    """Left, top, right and bottom [4] of the erased box in sides; all zero where none is."""
    size, half = tf.sqrt(value["box_area"]), 0.5 * value["box_log_aspect"]
    width, height = tf.minimum(size * tf.exp(half), 1), tf.minimum(size * tf.exp(-half), 1)
    left, top = value["box_x"] * (1 - width), value["box_y"] * (1 - height)
    box = tf.stack([left, top, left + width, top + height])
    return tf.where(value["erased"] > 0, box, tf.zeros(4))
