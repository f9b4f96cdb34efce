"""The pixels of views: what `views.draw` decided, done to a whole batch.

Colour, then geometry with a single resampling, then noise and erasing. Every operation here is
exactly rounded arithmetic, element by element (sums run over whole numbers), so a picture comes
out the same in any batch; with neutral parameters it comes out unchanged, bit for bit.
"""

from functools import cache

import numpy as np
import tensorflow as tf

_NUM_STARTS = 2**20
"""Places in the noise sequence at which a view may start."""


def apply(images: tf.Tensor, parameters: dict[str, tf.Tensor]) -> tf.Tensor:
    """Turn plain pictures into views.

    Args:
        images: [B, S, S, 3], 0-255, any numeric type; S is static.
        parameters: the entries of `views.draw`, stacked over the batch.

    Returns:
        float32 [B, S, S, 3] in 0-255.
    """
    size = images.shape[1]
    mean = _mean_colour(images) if {"contrast", "box"} & parameters.keys() else None
    if "mixing" in parameters:
        images = _mix(images, parameters["mixing"])
        mean = None if mean is None else _mix(mean, parameters["mixing"])
    pixels = tf.cast(images, tf.float32)
    if "contrast" in parameters:
        gain = parameters["contrast"][:, None, None, None]
        # By rows of numbers: adding along a last axis of 3 takes three times as long.
        pixels = _rows(pixels * gain, size) + _row_of((1 - gain) * mean, size)
        pixels = tf.reshape(pixels, [-1, size, size, 3])
    if "brightness" in parameters:
        pixels += parameters["brightness"][:, None, None, None]
    if "warp" in parameters:
        pixels = _warp(pixels, parameters["warp"])
    if "noise_scale" in parameters:
        noise = _noise(parameters["noise_start"], size)
        pixels += parameters["noise_scale"][:, None, None, None] * noise
    if "box" in parameters:
        pixels = _erase(pixels, parameters["box"], mean)
    if parameters.keys() <= {"warp"}:
        return pixels
    # One pass over memory; tf.clip_by_value takes two.
    return tf.raw_ops.ClipByValue(t=pixels, clip_value_min=0.0, clip_value_max=255.0)


def _rows(pixels: tf.Tensor, size: int) -> tf.Tensor:
    """[B, S, S, 3] as [B, S, 3 S]."""
    return tf.reshape(pixels, [-1, size, 3 * size])


def _row_of(colour: tf.Tensor, size: int) -> tf.Tensor:
    """A colour [B, 1, 1, 3] as one row of such pixels [B, 1, 3 S]."""
    return tf.tile(colour[:, 0], [1, 1, size])


def _mean_colour(images: tf.Tensor) -> tf.Tensor:
    """Mean colour [B, 1, 1, 3]; summed over whole numbers, where no order of adding matters."""
    total = tf.reduce_sum(tf.cast(images, tf.int32), axis=[1, 2], keepdims=True)
    return tf.cast(total, tf.float32) * (1 / (images.shape[1] * images.shape[2]))


def _mix(images: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Each picture's RGB times its own matrix [B, 3, 3].

    By planes rather than by matmul, whose order of adding may change with the batch size.
    """
    red, green, blue = (tf.cast(plane, tf.float32) for plane in tf.unstack(images, axis=-1))
    weights = tf.unstack(matrix[:, :, :, None, None], axis=1)
    mixed = [w[:, 0] * red + w[:, 1] * green + w[:, 2] * blue for w in weights]
    return tf.stack(mixed, axis=-1)


def _warp(pixels: tf.Tensor, affine: tf.Tensor) -> tf.Tensor:
    """Resample once, bilinearly, along each picture's map [B, 6] from view to picture.

    What lies outside the picture is its mirror image. A constant would frame it with straight
    edges that are the strongest in sight, repeating its border would draw streaks; they save 15
    and 10 % of the time.
    """
    size = pixels.shape[1]
    a, b, c, d, x, y = tf.unstack(affine, axis=1)
    # The operation counts from the centre of the first pixel, where the picture's centre is at:
    centre = (size - 1) / 2
    right = size * x + centre - (a + b) * centre
    down = size * y + centre - (c + d) * centre
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=tf.stack([a, b, right, c, d, down, zero, zero], axis=1),
        output_shape=[size, size],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )


@cache
def _normal_sequence(length: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(length, np.float32)


def _noise(start: tf.Tensor, size: int) -> tf.Tensor:
    """Standard normal noise [B, S, S, 3]: each view reads its own stretch of one long sequence.

    Fresh deviates would take as long as everything else a view needs, a stretch takes a fifth of
    that; and two views hardly ever start at the same of the million places.
    """
    length = 3 * size * size
    sequence = tf.constant(_normal_sequence(_NUM_STARTS + length))
    noise = tf.map_fn(
        lambda first: tf.slice(sequence, [first], [length]),
        tf.cast(start * _NUM_STARTS, tf.int32),
        fn_output_signature=tf.TensorSpec([length], tf.float32),
    )
    return tf.reshape(noise, [-1, size, size, 3])


def _erase(pixels: tf.Tensor, box: tf.Tensor, colour: tf.Tensor) -> tf.Tensor:
    """Fill each picture's box [B, 4] with its colour [B, 1, 1, 3]."""
    size = pixels.shape[1]
    middle = tf.constant((np.arange(size) + 0.5) / size, tf.float32)
    left, top, right, bottom = (edge[:, None] for edge in tf.unstack(box, axis=1))
    columns = tf.repeat((middle >= left) & (middle < right), 3, axis=1)
    rows = (middle >= top) & (middle < bottom)
    inside = rows[:, :, None] & columns[:, None, :]
    erased = tf.where(inside, _row_of(colour, size), _rows(pixels, size))
    return tf.reshape(erased, [-1, size, size, 3])
