"""Images in .npy files, as `numpy.save` writes them: the header, which has the shape.

`decoding` reads the same header in the graph of exported models. Standard library only.
"""

import re
from typing import Final, NamedTuple

MAGIC: Final = b"\x93NUMPY"
PREFIX_BYTES: Final = 10
"""Bytes before the header: the magic, the version of the format and the header's length."""

HEADER: Final = (
    r"\{'descr': '(\|u1|<u2)', 'fortran_order': False, "
    r"'shape': \((\d{1,7}), (\d{1,7})(?:, (\d{1,3}))?\), \}\s*"
)
"""Of uint8 or little-endian uint16 [H, W] or [H, W, C], row by row: type, H, W and C."""


class ArrayHeader(NamedTuple):
    """What the header of a .npy file says."""

    height: int
    width: int
    is_deep: bool
    """Whether values have 16 bits."""


def read_header(data: bytes) -> ArrayHeader | None:
    """The header of a .npy file; None for an array that cannot be an image."""
    if not data.startswith(MAGIC):
        return None
    size = int.from_bytes(data[8:PREFIX_BYTES], "little")
    found = re.fullmatch(HEADER, data[PREFIX_BYTES : PREFIX_BYTES + size].decode("latin-1"))
    return found and ArrayHeader(int(found[2]), int(found[3]), found[1] == "<u2")
