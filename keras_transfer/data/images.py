"""Image files: header checks, decoding and resizing.

Pillow reads the header only, so an image that is too large is refused before it takes memory. The
few files that TensorFlow reads wrongly or not at all (animations, palette bitmaps, transparent
WebP) are converted to PNG without loss; all others are passed on unchanged.

`decode_and_resize` is TensorFlow graph code and the only function that makes pixels of a file: the
audit before training, evaluation, the exported model and prediction all call it.
"""

import contextlib
import functools
import hashlib
import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Exif
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from keras_transfer.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"})
FORMATS = "JPEG, PNG, GIF, BMP or WebP"

# Opened by class, not by `PIL.Image.open`, which has size limits of its own and tries dozens of
# other formats.
_READERS: dict[str, type[ImageFile]] = {
    ".jpg": JpegImageFile,
    ".png": PngImageFile,
    ".gif": GifImageFile,
    ".bmp": BmpImageFile,
    ".webp": WebPImageFile,
}
_HEAD_BYTES = 12
_ORIENTATION_TAG = 0x0112


class UnreadableError(Exception):
    """A file is not a usable image; the text is the reason in a few words."""


class TooLargeError(UnreadableError):
    """An image has more pixels than are allowed."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Bytes of an image that TensorFlow decodes correctly, and what is unusual about the file.

    `digest` is the SHA-256 of the file on disk, in hex. `converted_from` is the format before the
    conversion to PNG, '' where nothing was converted.
    """

    data: bytes
    digest: str
    converted_from: str = ""
    has_alpha: bool = False
    is_rotated: bool = False


def sniff(head: bytes) -> str:
    """The suffix that fits a file's first 12 bytes, such as '.png'; '' if it is not an image."""
    if head.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return ".gif"
    if head.startswith(b"BM"):
        return ".bmp"
    return ".webp" if head[:4] == b"RIFF" and head[8:_HEAD_BYTES] == b"WEBP" else ""


def read_encoded(file: Path, *, max_megapixels: float) -> Encoded:
    """Read an image file and check its header.

    Raises:
        UnreadableError: the file is missing, empty, not an image, too large, or damaged.
    """
    data = _read_image_bytes(file)
    with _as_unreadable():
        image = _open(data, max_megapixels)
        must_convert = _is_misread_by_tensorflow(image, data)
        return Encoded(
            data=_to_png(image) if must_convert else data,
            digest=hashlib.sha256(data).hexdigest(),
            converted_from=str(image.format) if must_convert else "",
            has_alpha="A" in image.mode or "transparency" in image.info,
            is_rotated=_orientation(image) > 1,
        )


def check_encoded(data: bytes, *, max_megapixels: float) -> bytes:
    """Check the header of an image in memory; returns bytes that TensorFlow decodes correctly.

    Raises:
        UnreadableError: as `read_encoded`.
    """
    _check_kind(data)
    with _as_unreadable():
        image = _open(data, max_megapixels)
        return _to_png(image) if _is_misread_by_tensorflow(image, data) else data


def count_pixels(data: bytes, *, max_megapixels: float) -> int:
    """Pixels of an image in memory, by its header.

    Raises:
        UnreadableError: as `read_encoded`.
    """
    _check_kind(data)
    with _as_unreadable():
        width, height = _open(data, max_megapixels).size
        return width * height


@contextlib.contextmanager
def _as_unreadable() -> Iterator[None]:
    try:
        yield
    except UnreadableError:
        raise
    except Exception as error:  # Parsers of arbitrary bytes may raise anything.
        raise UnreadableError("truncated or damaged") from error


def _open(data: bytes, max_megapixels: float) -> ImageFile:
    image = _READERS[sniff(data[:_HEAD_BYTES])](io.BytesIO(data))
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise TooLargeError(f"{width} × {height} px is more than {max_megapixels:g} megapixels")
    return image


def _check_kind(head: bytes) -> None:
    if not head:
        raise UnreadableError("empty file")
    if not sniff(head[:_HEAD_BYTES]):
        raise UnreadableError(f"not an image ({FORMATS})")


def _read_image_bytes(file: Path) -> bytes:
    """Content of a file; only its first bytes are read if it is not an image."""
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
            data = head + stream.read() if sniff(head) else head
    except OSError as error:
        raise UnreadableError((error.strerror or "cannot be opened").lower()) from error
    _check_kind(data)
    return data


def _is_misread_by_tensorflow(image: ImageFile, data: bytes) -> bool:
    """True for images that `tf.io.decode_image` decodes wrongly, refuses, or decodes slowly.

    It reads the indices of a palette bitmap as grey values, refuses animated and transparent
    WebP, and decodes every frame of an animated GIF although only the first is used.
    """
    if isinstance(image, GifImageFile):
        return image.is_animated
    if isinstance(image, WebPImageFile):
        return image.is_animated or image.mode != "RGB"
    if isinstance(image, BmpImageFile):
        header_bytes, bits, compression = struct.unpack_from("<I10xHI", data, 14)
        return header_bytes < 40 or bits not in (24, 32) or compression != 0
    return False


def _to_png(image: ImageFile) -> bytes:
    """The first frame, without alpha, as a PNG."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _orientation(image: ImageFile) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 where there is none or it cannot be read."""
    raw = image.info.get("exif")
    if not raw:
        return 1
    exif = Exif()
    try:
        exif.load(raw)
        return int(exif.get(_ORIENTATION_TAG, 1))
    except Exception:  # Broken metadata leaves the image itself usable.
        return 1


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
"""Increase it when the same file is decoded to other pixels: cached pixels are then not used."""
_BMP_HEADER_BYTES = 30
_BMP_BITS_PER_PIXEL = 28


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


def decode_and_resize(encoded: tf.Tensor, *, image_size: int, resize: str) -> tf.Tensor:
    """Decode one image and resize it to the network's square input.

    Args:
        encoded: scalar string, the bytes of a JPEG, PNG, GIF, BMP without palette or opaque WebP.
        image_size: side S of the square, px.
        resize: 'crop' (centre), 'pad' (black bars) or 'squash' (aspect ratio not kept).

    Returns:
        uint8 [S, S, 3], RGB. Alpha is dropped, 16-bit channels keep their high byte, a GIF its
        first frame; EXIF rotation is ignored.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are not such an image, or damaged.
    """
    with tf.control_dependencies([_refuse_palette_bmp(encoded)]):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return resize_pixels(image, image_size=image_size, resize=resize)


def resize_pixels(image: tf.Tensor, *, image_size: int, resize: str) -> tf.Tensor:
    """Resize pixels to the network's square input, bilinear with antialiasing.

    Args:
        image: [H, W, 3] or [B, H, W, 3] of any numeric type, clipped to 0-255; H, W >= 1.
        image_size: side S of the square, px.
        resize: 'crop', 'pad' or 'squash', as in `decode_and_resize`.

    Returns:
        uint8 of the same rank, [.., S, S, 3], rounded to the nearest value.
    """
    assert resize in ("crop", "pad", "squash"), resize
    batch = image if image.shape.rank == 4 else image[tf.newaxis]
    if batch.dtype != tf.uint8:  # uint8 resizes up to 4 times as fast as float32.
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
        # At least one pixel: the short side of a very long image would round to 0.
        content = tf.maximum(tf.cast(tf.round(image_size * ratio), tf.int32), 1)
    resized = tf.raw_ops.ScaleAndTranslate(
        images=batch,
        size=[image_size, image_size],
        scale=tf.cast(content / size, tf.float32),
        translation=tf.cast((image_size - content) // 2, tf.float32),
        kernel_type="triangle",
        antialias=True,
    )
    # The weights are positive and sum to 1, so values stay in 0-255 and only need rounding.
    pixels = tf.cast(resized + 0.5, tf.uint8)
    return pixels if image.shape.rank == 4 else pixels[0]


@functools.cache
def decoder(image_size: int, resize: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """`decode_and_resize` as one traced function that runs on the CPU."""

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        with tf.device("/CPU:0"):
            return decode_and_resize(encoded, image_size=image_size, resize=resize)

    return tf.function(decode, autograph=False).get_concrete_function(tf.TensorSpec([], tf.string))


@functools.cache
def batch_decoder(image_size: int, resize: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """`decoder` for a batch, string [B] to uint8 [B, S, S, 3]; one bad image fails the batch."""
    decode = decoder(image_size, resize)

    def decode_all(encoded: tf.Tensor) -> tf.Tensor:
        square = tf.TensorSpec([image_size, image_size, 3], tf.uint8)
        with tf.device("/CPU:0"):
            return tf.map_fn(decode, encoded, fn_output_signature=square)

    specification = tf.TensorSpec([None], tf.string)
    return tf.function(decode_all, autograph=False).get_concrete_function(specification)


@functools.cache
def resizer(image_size: int, resize: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """`resize_pixels` of one uint8 image [H, W, 3] as a traced function that runs on the CPU."""

    def shrink(pixels: tf.Tensor) -> tf.Tensor:
        with tf.device("/CPU:0"):
            return resize_pixels(pixels, image_size=image_size, resize=resize)

    specification = tf.TensorSpec([None, None, 3], tf.uint8)
    return tf.function(shrink, autograph=False).get_concrete_function(specification)


def _refuse_palette_bmp(encoded: tf.Tensor) -> tf.Operation:
    """Fail on BMP files with a palette: TensorFlow ignores it and gives wrong colours."""
    start = tf.strings.substr(encoded, 0, _BMP_HEADER_BYTES)
    padded = tf.strings.join([start, b"\0" * _BMP_HEADER_BYTES])
    header = tf.io.decode_raw(tf.strings.substr(padded, 0, _BMP_HEADER_BYTES), tf.uint8)
    is_bmp = tf.equal(tf.strings.substr(padded, 0, 2), b"BM")
    has_palette = tf.logical_and(is_bmp, header[_BMP_BITS_PER_PIXEL] <= 8)
    return tf.debugging.Assert(
        tf.logical_not(has_palette), ["BMP files with a palette are not supported"]
    )
