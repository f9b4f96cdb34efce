"""Picture files before they are decoded: what the header says, and bytes TensorFlow reads.

Pillow looks at the header alone, so a picture of absurd size is refused before any memory is
spent on it. The few files that TensorFlow would read wrongly or not at all (animations, palette
bitmaps, transparent WebP) become a PNG without loss; all others pass through untouched.
"""

import contextlib
import hashlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Exif
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"})
FORMATS = "JPEG, PNG, GIF, BMP or WebP"

# Opened by class, not by `PIL.Image.open`: that one warns of large pictures or raises by limits
# of its own, and would hand a file to dozens of formats that nobody asked for.
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
    """Why a file is no usable picture, in a few words."""


class TooLargeError(UnreadableError):
    """A picture has more pixels than are allowed."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A file's bytes as TensorFlow decodes them, and what is unusual about the file.

    `digest` is the SHA-256 of the file as it lies on disk, in hex. `converted_from` names the
    format a picture had before it became a PNG, '' where it passed through.
    """

    data: bytes
    digest: str
    converted_from: str = ""
    has_alpha: bool = False
    is_rotated: bool = False


def sniff(head: bytes) -> str:
    """The suffix that a file's first 12 bytes call for, such as '.png'; '' for no picture."""
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
    """Read a picture file and look at its header.

    Raises:
        UnreadableError: the file is missing, empty, no picture, too large, or its header damaged.
    """
    data = _read_picture_bytes(file)
    with _telling_damage():
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
    """Look at the header of a picture in memory; returns bytes that TensorFlow decodes rightly.

    Raises:
        UnreadableError: as `read_encoded`.
    """
    _check_kind(data)
    with _telling_damage():
        image = _open(data, max_megapixels)
        return _to_png(image) if _is_misread_by_tensorflow(image, data) else data


@contextlib.contextmanager
def _telling_damage() -> Iterator[None]:
    try:
        yield
    except UnreadableError:
        raise
    except Exception as error:  # Parsers that meet arbitrary bytes may raise anything.
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
        raise UnreadableError(f"not a picture ({FORMATS})")


def _read_picture_bytes(file: Path) -> bytes:
    """Content of a file; only its first bytes are read if it is no picture."""
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
            data = head + stream.read() if sniff(head) else head
    except OSError as error:
        raise UnreadableError((error.strerror or "cannot be opened").lower()) from error
    _check_kind(data)
    return data


def _is_misread_by_tensorflow(image: ImageFile, data: bytes) -> bool:
    """True for the pictures `tf.io.decode_image` shows wrongly, refuses, or reads in full.

    It takes the indices of a palette bitmap for grey values, refuses animated and transparent
    WebP, and unpacks every frame of an animated GIF before it keeps the first.
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
    except Exception:  # Broken metadata leaves the picture itself usable.
        return 1
