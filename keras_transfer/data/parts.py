"""Counts the parts of image files: segments of JPEG, chunks of PNG and WebP, blocks of GIF.

`decoding`, the graph of exported models, walks over the same parts and refuses files with too many
of them. This is the same walk, hundreds of times faster, for files that are read by this package.
"""

from collections.abc import Iterator
from typing import Final

_MOST_PARTS: Final = 200
"""The most that are walked over in files without many bytes: in the graph of an exported model each
takes as long as 1,000 pixels."""
_PART_BYTES: Final = 1024
_BLOCK_BYTES: Final = 64
"""More bytes allow one more part or, of a GIF, one more block, which has at most 255."""


def most_parts(num_bytes: int, *, is_gif: bool = False) -> int:
    """The most parts that a file of so many bytes may have; also of a scalar tensor."""
    return _MOST_PARTS + num_bytes // (_BLOCK_BYTES if is_gif else _PART_BYTES)


def has_too_many_parts(data: bytes, suffix: str) -> bool:
    """Whether an image file has more parts than `most_parts`, up to what decoding needs.

    Args:
        suffix: that of its content, such as '.png'; files of other kinds than the four have none.
    """
    if suffix not in _WALKS:
        return False
    most = most_parts(len(data), is_gif=suffix == ".gif")
    return any(count > most for count, _ in enumerate(_WALKS[suffix](data), start=1))


def _segments(data: bytes) -> Iterator[int]:
    """The positions of what precedes the first scan of a JPEG, fill bytes one by one."""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        yield position
        is_fill = data[position + 1 : position + 2] == b"\xff"
        position += 1 if is_fill else 2 + _number(data, position + 2, 2)


def _png_chunks(data: bytes) -> Iterator[int]:
    """The positions of chunks, up to the last of those that `decoding` looks for."""
    sought, position = {b"tRNS", b"eXIf"}, 8
    while position < len(data):
        sought.discard(data[position + 4 : position + 8])
        if not sought:
            return
        yield position
        position += 12 + _number(data, position, 4)


def _riff_chunks(data: bytes) -> Iterator[int]:
    """The positions of the chunks of a WebP up to its EXIF block."""
    position = 12
    while position < len(data) and data[position : position + 4] != b"EXIF":
        yield position
        length = int.from_bytes(data[position + 4 : position + 8].ljust(4, b"\0"), "little")
        position += 8 + length + length % 2


def _gif_blocks(data: bytes) -> Iterator[int]:
    """The positions of the blocks of a GIF, and of their parts, up to its second frame."""
    position, num_frames = 13 + _table_bytes(data, 10), 0
    while num_frames < 2 and (kind := data[position : position + 1]) in (b"\x21", b"\x2c"):
        yield position
        is_frame = kind == b"\x2c"
        position += 11 + _table_bytes(data, position + 9) if is_frame else 2
        while length := _number(data, position, 1):
            yield position
            position += length + 1
        position += 1
        num_frames += is_frame


_WALKS: Final = {".jpg": _segments, ".png": _png_chunks, ".webp": _riff_chunks, ".gif": _gif_blocks}


def _number(data: bytes, position: int, size: int) -> int:
    """An unsigned number, the highest byte first; bytes past the end of the file are 0."""
    return int.from_bytes(data[position : position + size].ljust(size, b"\0"), "big")


def _table_bytes(data: bytes, position: int) -> int:
    """The bytes of the colour table that a byte of flags announces."""
    flags = _number(data, position, 1)
    return 3 * 2 ** (flags % 8 + 1) if flags >= 128 else 0
