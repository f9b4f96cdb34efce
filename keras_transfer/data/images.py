"""Image files: header checks, decoding and resizing.

Pillow reads the header only, so an image that is too large is refused before it takes memory. The
few files that an exported model refuses (animations, some GIF, old bitmaps) are converted to
PNG without loss; all others are passed on unchanged.

`decode_and_resize` is TensorFlow graph code and the only function that makes pixels of a file: the
audit before training, evaluation, the exported model and prediction all call it.
"""

import functools
import hashlib
import io
import os
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NotRequired, Protocol, TypedDict, Unpack

import numpy as np
import tensorflow as tf
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from keras_transfer.data.array_files import read_header
from keras_transfer.data.decoding import MOST_TAGS, TOO_MANY_PARTS, decode
from keras_transfer.data.file_kinds import EXTENSIONS, FORMATS, HEAD_BYTES, sniff
from keras_transfer.data.parts import has_too_many_parts
from keras_transfer.errors import DataError
from keras_transfer.specs import COLOURS

# Opened by class, not by `PIL.Image.open`, which has size limits of its own and tries dozens of
# other formats.
_READERS: dict[str, type[ImageFile]] = {
    ".jpg": JpegImageFile,
    ".png": PngImageFile,
    ".gif": GifImageFile,
    ".bmp": BmpImageFile,
    ".webp": WebPImageFile,
}
_ORIENTATION_TAG, _SHORT = 0x0112, 3
_PNG_DEPTH = 24
_MOST_BYTES = 2**31 - 1
"""TensorFlow's decoders refuse longer files, which would first be read as a whole."""


class UnreadableError(Exception):
    """A file is not a usable image; the text is the reason in a few words."""


class TooLargeError(UnreadableError):
    """An image has more pixels than are allowed."""


class Decoding(TypedDict):
    """The arguments of `decode_and_resize`, which describes them."""

    image_size: int
    resize: str
    max_megapixels: float
    background: NotRequired[str]
    bit_depth: NotRequired[int]
    channels: NotRequired[int]


class HasDecoding(Protocol):
    """The fields of a `DataSpec` or a contract that decoding depends on."""

    @property
    def image_size(self) -> int: ...
    @property
    def resize(self) -> str: ...
    @property
    def max_megapixels(self) -> float: ...
    @property
    def background(self) -> str: ...
    @property
    def bit_depth(self) -> int: ...
    @property
    def channels(self) -> int: ...


def decoding_of(fields: HasDecoding) -> Decoding:
    """The arguments of `decode_and_resize` under a spec or a contract."""
    return Decoding(
        image_size=fields.image_size,
        resize=fields.resize,
        max_megapixels=fields.max_megapixels,
        background=fields.background,
        bit_depth=fields.bit_depth,
        channels=fields.channels,
    )


@dataclass(frozen=True, slots=True)
class Encoded:
    """Bytes of an image that TensorFlow decodes correctly, and what is unusual about the file.

    `digest` is the SHA-256 of the file on disk, in hex. `converted_from` is the format before the
    conversion to PNG, '' where nothing was converted. `is_deep`: its values have 16 bits.
    """

    data: bytes
    digest: str
    converted_from: str = ""
    has_alpha: bool = False
    is_rotated: bool = False
    is_deep: bool = False


def read_encoded(file: Path, *, max_megapixels: float) -> Encoded:
    """Read an image file and check its header.

    Raises:
        UnreadableError: the file is missing, empty, not an image, too large, or damaged.
    """
    return _examined(_read_image_bytes(file), max_megapixels)


def check_encoded(data: bytes, *, max_megapixels: float) -> bytes:
    """Check the header of an image in memory; returns bytes that TensorFlow decodes correctly.

    Raises:
        UnreadableError: as `read_encoded`.
    """
    _check_kind(data)
    return _examined(data, max_megapixels).data


def count_pixels(data: bytes, *, max_megapixels: float) -> int:
    """Pixels of an image in memory, by its header; the most allowed where Pillow cannot read it.

    Raises:
        UnreadableError: as `read_encoded`.
    """
    _check_kind(data)
    try:
        width, height = _header_size(data)
    except UnreadableError:
        raise
    except Exception:  # Parsers of arbitrary bytes may raise anything.
        return int(max_megapixels * 1e6)
    _check_size(width, height, max_megapixels)
    return width * height


def encode_array(pixels: np.ndarray) -> bytes:
    """Pixels uint8 or uint16 [H, W, C], or [H, W] of one channel, as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(pixels))
    return buffer.getvalue()


def shown(pixels: np.ndarray) -> np.ndarray:
    """What is shown of pixels [.., C] in RGB: the first 3 channels, of fewer the first in grey."""
    if pixels.shape[-1] < COLOURS:
        return np.repeat(pixels[..., :1], COLOURS, axis=-1)
    return pixels[..., :COLOURS]


def refusal(error: tf.errors.InvalidArgumentError) -> str:
    """Why `decode_and_resize` refuses an image, in a few words."""
    reason = re.search(r"assertion failed: \[(.*?)\]", str(error))
    return reason[1] if reason else "truncated or damaged"


def _open(data: bytes) -> ImageFile:
    """An image whose header Pillow has read."""
    return _READERS[sniff(data[:HEAD_BYTES])](io.BytesIO(data))


def _header_size(data: bytes) -> tuple[int, int]:
    if header := read_header(data):
        return header.width, header.height
    width, height = _open(data).size
    return width, height


def _check_size(width: int, height: int, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise TooLargeError(f"{width} × {height} px is more than {max_megapixels:g} megapixels")


def _examined(data: bytes, max_megapixels: float) -> Encoded:
    """The bytes of an image, converted if exported models refuse it, and the facts about it.

    Where Pillow cannot read the header the decoder decides, as it does in exported models.
    """
    plain = Encoded(data, hashlib.sha256(data).hexdigest())
    if header := read_header(data):
        _check_size(header.width, header.height, max_megapixels)
        return replace(plain, is_deep=header.is_deep)
    try:
        image = _open(data)
        width, height = image.size
        is_refused = _is_refused_by_exports(image, data)
        examined = replace(
            plain,
            has_alpha=image.has_transparency_data,
            is_rotated=_orientation(image) > 1,
            is_deep=image.format == "PNG" and data[_PNG_DEPTH] == 16,
        )
    except UnreadableError:
        raise
    except Exception:  # Parsers of arbitrary bytes may raise anything.
        return plain
    _check_size(width, height, max_megapixels)
    if not is_refused:
        return examined
    return replace(examined, data=_to_png(_open(data)), converted_from=str(image.format))


def _check_kind(data: bytes) -> None:
    if not data:
        raise UnreadableError("empty file")
    suffix = sniff(data[:HEAD_BYTES])
    if not suffix:
        raise UnreadableError(f"not an image ({FORMATS})")
    if has_too_many_parts(data, suffix):  # Before Pillow, which takes longer to walk over them.
        raise UnreadableError(TOO_MANY_PARTS)


def _read_image_bytes(file: Path) -> bytes:
    """Content of a file; only its first bytes are read if it is not an image."""
    try:
        with file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size > _MOST_BYTES:
                raise UnreadableError("2 GiB or more")
            head = stream.read(HEAD_BYTES)
            data = head + stream.read() if sniff(head) else head
    except OSError as error:
        raise UnreadableError((error.strerror or "cannot be opened").lower()) from error
    _check_kind(data)
    return data


def _is_refused_by_exports(image: ImageFile, data: bytes) -> bool:
    """True for images that `decoding.decode` refuses because of their kind."""
    if isinstance(image, GifImageFile):
        is_part = bool(image.tile) and image.tile[0][1] != (0, 0, *image.size)
        return is_part or image.is_animated or image.has_transparency_data
    if isinstance(image, WebPImageFile):
        return data[12:16] == b"VP8X" and bool(data[20] & 2)
    if isinstance(image, BmpImageFile):
        header_bytes, bits, compression = struct.unpack_from("<I10xHI", data, 14)
        return header_bytes < 40 or bits not in (24, 32) or compression != 0
    return False


def _to_png(image: ImageFile) -> bytes:
    """The first frame as a PNG, with its transparency and EXIF orientation.

    Raises:
        UnreadableError: it cannot be decoded.
    """
    buffer = io.BytesIO()
    mode = "RGBA" if image.has_transparency_data else "RGB"
    try:
        image.convert(mode).save(buffer, "PNG", compress_level=1, exif=image.info.get("exif", b""))
    except Exception as error:  # Decoders of arbitrary bytes may raise anything.
        raise UnreadableError("truncated or damaged") from error
    return buffer.getvalue()


def _orientation(image: ImageFile) -> int:
    """EXIF orientation 1-8, as `decoding.decode` reads it; 1 where there is none or a wrong one."""
    block = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    order = ">" if block[:2] == b"MM" else "<"
    try:
        (table,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, table)
        for entry in range(table + 2, table + 2 + 12 * min(count, MOST_TAGS), 12):
            tag, kind, value = struct.unpack_from(f"{order}HH4xH", block, entry)
            if tag == _ORIENTATION_TAG:
                return int(value) if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:  # The block ends early.
        pass
    return 1


__all__ = [
    "DECODER_VERSION",
    "EXTENSIONS",
    "Decoding",
    "batch_decoder",
    "decode_and_resize",
    "decoder",
    "decoding_of",
    "encode_array",
    "load_encoded",
    "resize_pixels",
    "resizer",
    "shown",
]

LUMA: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey level, of ITU-R BT.601."""

DECODER_VERSION = 3
"""Increase it when the same file is decoded to other pixels: cached pixels are then not used."""
_MIRRORED_ROWS, _MIRRORED_COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)
"""EXIF orientations whose rows or columns are mirrored; those above 4 are transposed before."""


def load_encoded(file: Path, *, max_megapixels: float) -> bytes:
    """Read an image file as bytes that `decode_and_resize` accepts.

    Only the header is checked, so an image that is too large takes no memory; damage after the
    header is found when the bytes are decoded.

    Raises:
        DataError: the file is missing, empty, not an image, damaged or too large; `received` is
            the reason in a few words.
    """
    try:
        return read_encoded(file, max_megapixels=max_megapixels).data
    except UnreadableError as error:
        raise DataError(
            f"{file} cannot be read",
            expected=f"a {FORMATS} image of at most {max_megapixels:g} megapixels",
            received=str(error),
            fix="replace or remove the file; if it is only too large, raise data.max_megapixels",
        ) from error


def decode_and_resize(
    encoded: tf.Tensor,
    *,
    image_size: int,
    resize: str,
    max_megapixels: float = 100.0,
    background: str = "white",
    bit_depth: int = 16,
    channels: int = COLOURS,
) -> tf.Tensor:
    """Decode one image and resize it to the network's square input.

    Args:
        encoded: scalar string, the bytes of an image that `decoding.decode` accepts.
        image_size: side S of the square, px.
        resize: 'crop' (centre), 'pad' (black bars) or 'squash' (aspect ratio not kept).
        max_megapixels, background, bit_depth, channels: see `decoding.decode`.

    Returns:
        uint8 [S, S, C], upright, where C is `channels`: 3 are RGB, 1 is the grey level. Of values
        with 16 bits the highest 8 of `bit_depth` bits are kept, of a GIF its first frame.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are not such an image, or damaged; `refusal` has
            the reason.
    """
    # Small integers are faster there than on an accelerator.
    with tf.device("/CPU:0"):
        image, orientation = decode(
            encoded,
            max_megapixels=max_megapixels,
            background=background,
            bit_depth=bit_depth,
            channels=channels,
        )
        is_transposed = orientation > 4
        rows, columns = (
            tf.reduce_any(orientation == tf.constant(orientations, tf.int64))
            for orientations in (_MIRRORED_ROWS, _MIRRORED_COLUMNS)
        )
        stored = tf.where(is_transposed, [columns, rows], [rows, columns])
        square = resize_pixels(image, image_size=image_size, resize=resize, mirrored=stored)
        # A small square is turned much faster than a photograph.
        square = tf.cond(is_transposed, lambda: tf.transpose(square, [1, 0, 2]), lambda: square)
        square = tf.cond(rows, lambda: square[::-1], lambda: square)
        square = tf.cond(columns, lambda: square[:, ::-1], lambda: square)
        square = _grey(square) if channels == 1 else square
        return tf.ensure_shape(square, [image_size, image_size, channels])


def _grey(pixels: tf.Tensor) -> tf.Tensor:
    """The grey level uint8 [H, W, 1] of RGB; a pixel of three equal values keeps them."""
    level = tf.reduce_sum(tf.cast(pixels, tf.float32) * LUMA, axis=2, keepdims=True)
    return tf.cast(level + 0.5, tf.uint8)


def resize_pixels(
    image: tf.Tensor,
    *,
    image_size: int,
    resize: str,
    mirrored: tf.Tensor | Sequence[bool] = (False, False),
) -> tf.Tensor:
    """Resize pixels to the network's square input, bilinear with antialiasing.

    Args:
        image: [H, W, C] or [B, H, W, C] of any numeric type, clipped to 0-255; H, W >= 1.
        image_size: side S of the square, px.
        resize: 'crop', 'pad' or 'squash', as in `decode_and_resize`.
        mirrored: bool [2], whether rows and columns will be mirrored. The centre is then rounded
            to the other side, as if that had happened before.

    Returns:
        uint8 of the same rank, [.., S, S, C], rounded to the nearest value.
    """
    assert resize in ("crop", "pad", "squash"), resize
    batch = image if image.shape.rank == 4 else image[tf.newaxis]
    if batch.dtype != tf.uint8:  # uint8 resizes up to 4 times as fast as float32.
        batch = tf.clip_by_value(tf.cast(batch, tf.float32), 0, 255)
    size = tf.shape(batch)[1:3]
    content = tf.fill([2], image_size)
    extra = tf.cast(mirrored, tf.int32)
    if resize == "crop":
        side = tf.reduce_min(size)
        top, left = tf.unstack((size - side + extra) // 2)
        batch = batch[:, top : top + side, left : left + side]
        size = tf.fill([2], side)
    elif resize == "pad":
        ratio = tf.cast(size, tf.float32) / tf.cast(tf.reduce_max(size), tf.float32)
        # At least one pixel: the short side of a very long image would round to 0.
        content = tf.maximum(tf.cast(tf.round(image_size * ratio), tf.int32), 1)
    resized = tf.raw_ops.ScaleAndTranslate(
        images=batch,
        size=[image_size, image_size],
        scale=tf.cast(content / size, tf.float32),
        translation=tf.cast((image_size - content + extra) // 2, tf.float32),
        kernel_type="triangle",
        antialias=True,
    )
    # The weights are positive and sum to 1, so values stay in 0-255 and only need rounding.
    pixels = tf.cast(resized + 0.5, tf.uint8)
    return pixels if image.shape.rank == 4 else pixels[0]


@functools.cache
def decoder(**decoding: Unpack[Decoding]) -> tf.types.experimental.ConcreteFunction:
    """`decode_and_resize` as one traced function that runs on the CPU."""
    function = tf.function(functools.partial(decode_and_resize, **decoding), autograph=False)
    return function.get_concrete_function(tf.TensorSpec([], tf.string))


@functools.cache
def batch_decoder(**decoding: Unpack[Decoding]) -> Callable[[tf.Tensor], tf.Tensor]:
    """`decoder` for a batch, string [B] to uint8 [B, S, S, C]; one bad image fails the batch."""
    decode = decoder(**decoding)

    def decode_all(encoded: tf.Tensor) -> tf.Tensor:
        square = tf.TensorSpec(decode.structured_outputs.shape, tf.uint8)
        with tf.device("/CPU:0"):
            return tf.map_fn(decode, encoded, fn_output_signature=square)

    specification = tf.TensorSpec([None], tf.string)
    return tf.function(decode_all, autograph=False).get_concrete_function(specification)


@functools.cache
def resizer(image_size: int, resize: str, channels: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """`resize_pixels` of one uint8 image [H, W, C] as a traced function that runs on the CPU."""

    def shrink(pixels: tf.Tensor) -> tf.Tensor:
        with tf.device("/CPU:0"):
            return resize_pixels(pixels, image_size=image_size, resize=resize)

    specification = tf.TensorSpec([None, None, channels], tf.uint8)
    return tf.function(shrink, autograph=False).get_concrete_function(specification)
