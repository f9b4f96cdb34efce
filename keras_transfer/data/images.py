"""From a file to the square the network sees: one function, one meaning, everywhere.

`decode_and_resize` is pure TensorFlow graph code and the only way a picture becomes pixels: the
audit before training, evaluation, the exported model and prediction all run it.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from keras_transfer.data.encoded import EXTENSIONS, FORMATS, UnreadableError, read_encoded
from keras_transfer.errors import DataError

__all__ = [
    "DECODER_VERSION",
    "EXTENSIONS",
    "batch_decoder",
    "decode_and_resize",
    "decoder",
    "load_encoded",
    "resize_pixels",
    "resizer",
]

DECODER_VERSION = 1
"""To be raised whenever the same file comes out as other pixels: stored ones are then left."""
_BMP_HEADER_BYTES = 30
_BMP_BITS_PER_PIXEL = 28


def load_encoded(file: Path, *, max_megapixels: float) -> bytes:
    """Read a picture file as bytes that `decode_and_resize` accepts.

    Only the header is looked at, so a picture that is too large costs nothing; damage further
    on shows when the bytes are decoded.

    Raises:
        DataError: the file is missing, empty, no picture, damaged or too large; `received` is
            the reason in a few words.
    """
    try:
        return read_encoded(file, max_megapixels=max_megapixels).data
    except UnreadableError as error:
        raise DataError(
            f"{file} cannot be read",
            expected=f"a {FORMATS} picture of at most {max_megapixels:g} megapixels",
            received=str(error),
            fix="replace or remove the file, or raise data.max_megapixels if it is only large",
        ) from error


def decode_and_resize(encoded: tf.Tensor, *, image_size: int, resize: str) -> tf.Tensor:
    """Decode one picture and bring it to the square the network sees.

    Args:
        encoded: scalar string, the bytes of a JPEG, PNG, GIF, BMP without palette or opaque WebP.
        image_size: side S of the square, px.
        resize: 'crop' (centre), 'pad' (black bars) or 'squash' (aspect ratio given up).

    Returns:
        uint8 [S, S, 3], RGB. Alpha is dropped, 16-bit channels keep their high byte, a GIF its
        first frame; EXIF rotation is ignored.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are no such picture, or damaged.
    """
    with tf.control_dependencies([_refuse_palette_bmp(encoded)]):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return resize_pixels(image, image_size=image_size, resize=resize)


def resize_pixels(image: tf.Tensor, *, image_size: int, resize: str) -> tf.Tensor:
    """Bring pixels to the square the network sees, bilinear with antialiasing.

    Args:
        image: [H, W, 3] or [B, H, W, 3] of any numeric type, clipped to 0-255; H, W >= 1.
        image_size: side S of the square, px.
        resize: 'crop', 'pad' or 'squash', as in `decode_and_resize`.

    Returns:
        uint8 of the same rank, [.., S, S, 3], rounded to the nearest value.
    """
    assert resize in ("crop", "pad", "squash"), resize
    batch = image if image.shape.rank == 4 else image[tf.newaxis]
    if batch.dtype != tf.uint8:  # Which resizes up to 4 times faster than float32.
        batch = tf.clip_by_value(tf.cast(batch, tf.float32), 0, 255)
    size = tf.shape(batch)[1:3]
    content = tf.fill([2], image_size)
    if resize == "crop":
        side = tf.reduce_min(size)
        top, left = tf.unstack((size - side) // 2)
        batch = batch[:, top : top + side, left : left + side]
        size = tf.fill([2], side)
    elif resize == "pad":
        ratio = tf.cast(size, tf.float32) / tf.cast(tf.reduce_max(size), tf.float32)
        # The short side of a very long picture would vanish between two output pixels.
        content = tf.maximum(tf.cast(tf.round(image_size * ratio), tf.int32), 1)
    resized = tf.raw_ops.ScaleAndTranslate(
        images=batch,
        size=[image_size, image_size],
        scale=tf.cast(content / size, tf.float32),
        translation=tf.cast((image_size - content) // 2, tf.float32),
        kernel_type="triangle",
        antialias=True,
    )
    # Weights are positive and sum to one: the mean of 0-255 needs no clipping, only rounding.
    pixels = tf.cast(resized + 0.5, tf.uint8)
    return pixels if image.shape.rank == 4 else pixels[0]


@functools.cache
def decoder(image_size: int, resize: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """`decode_and_resize` as one traced function, kept off any accelerator."""

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        with tf.device("/CPU:0"):
            return decode_and_resize(encoded, image_size=image_size, resize=resize)

    return tf.function(decode, autograph=False).get_concrete_function(tf.TensorSpec([], tf.string))


@functools.cache
def batch_decoder(image_size: int, resize: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """`decoder` for many pictures at once, string [B] to uint8 [B, S, S, 3]; one bad fails all."""
    decode = decoder(image_size, resize)

    def decode_all(encoded: tf.Tensor) -> tf.Tensor:
        square = tf.TensorSpec([image_size, image_size, 3], tf.uint8)
        with tf.device("/CPU:0"):
            return tf.map_fn(decode, encoded, fn_output_signature=square)

    specification = tf.TensorSpec([None], tf.string)
    return tf.function(decode_all, autograph=False).get_concrete_function(specification)


@functools.cache
def resizer(image_size: int, resize: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """`resize_pixels` of one uint8 picture [H, W, 3] as a traced function, off any accelerator."""

    def shrink(pixels: tf.Tensor) -> tf.Tensor:
        with tf.device("/CPU:0"):
            return resize_pixels(pixels, image_size=image_size, resize=resize)

    specification = tf.TensorSpec([None, None, 3], tf.uint8)
    return tf.function(shrink, autograph=False).get_concrete_function(specification)


def _refuse_palette_bmp(encoded: tf.Tensor) -> tf.Operation:
    """Fail on BMP files whose palette TensorFlow would ignore, showing wrong colours."""
    start = tf.strings.substr(encoded, 0, _BMP_HEADER_BYTES)
    padded = tf.strings.join([start, b"\0" * _BMP_HEADER_BYTES])
    header = tf.io.decode_raw(tf.strings.substr(padded, 0, _BMP_HEADER_BYTES), tf.uint8)
    is_bmp = tf.equal(tf.strings.substr(padded, 0, 2), b"BM")
    has_palette = tf.logical_and(is_bmp, header[_BMP_BITS_PER_PIXEL] <= 8)
    return tf.debugging.Assert(
        tf.logical_not(has_palette), ["BMP files with a palette are not supported"]
    )
