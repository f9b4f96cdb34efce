"""Notes on images that show nothing, or nearly nothing, after decoding.

Masks, empty exports, content in an alpha channel of the background's colour, and 16-bit files of
which few bits are in use look like this.
"""

from collections.abc import Container, Iterator, Sequence
from typing import Final

import numpy as np

from keras_transfer.data.records import Record, counted
from keras_transfer.specs import DataSpec
from keras_transfer.storage.shards import Rows

_CHUNK: Final = 256
_SIDE: Final = 32
"""Pixels of a side that are looked at."""

_CONSTANT: Final = 3.0
"""An image whose standard deviation is below it, in grey levels, shows a single colour."""

_NARROW: Final = 64
"""An image whose highest and lowest values are less than this apart has little contrast."""

_BIT_DEPTHS: Final = {3: 10, 15: 12, 63: 14}
"""Bits in use of a 16-bit file, by its highest 8-bit value."""

_NAMED: Final = 5


def notes_on_ranges(
    items: Sequence[Record], pixels: Rows, deep: Container[str], spec: DataSpec
) -> Iterator[str]:
    """Sentences that name images of a single colour, and images of little contrast.

    Args:
        pixels: uint8 [N, S, S, C] of the items.
        deep: digests of files with 16 bits.
    """
    figures = [
        _figures(np.asarray(pixels[start : start + _CHUNK]))
        for start in range(0, len(items), _CHUNK)
    ]
    highest, ranges, deviations = np.concatenate(figures, axis=1) if figures else np.empty((3, 0))
    is_constant = deviations < _CONSTANT
    is_narrow = ~is_constant & (ranges < _NARROW)
    constant, narrow = np.flatnonzero(is_constant), np.flatnonzero(is_narrow)
    if len(constant):
        words = counted(len(constant), "image decodes", "images decode")
        yield f"{words} to a single colour or nearly so: {_name(items, constant)}"
    if len(narrow):
        words = counted(len(narrow), "image uses", "images use")
        yield f"{words} less than a quarter of the range 0-255: {_name(items, narrow)}"
    low = [row for row in (*constant, *narrow) if items[row].digest in deep]
    most = highest[low].max(initial=0)
    bits = next((bits for level, bits in _BIT_DEPTHS.items() if most <= level), 16)
    if low and bits < spec.bit_depth:
        words = counted(len(low), "of these is a 16-bit file", "of these are 16-bit files")
        yield f"{words} with at most {bits} bits in use: set data.bit_depth={bits}"


def _figures(images: np.ndarray) -> np.ndarray:
    """The highest value, range and standard deviation of images [B, S, S, C], float32 [3, B].

    Range and deviation are the largest of all channels; black bars do not count.
    """
    step = max(1, images.shape[1] // _SIDE)
    sample = images[:, ::step, ::step].astype(np.float32)
    is_black = (sample == 0).all(axis=-1)
    shown = ~(is_black.all(axis=2)[:, :, np.newaxis] | is_black.all(axis=1)[:, np.newaxis])
    where, axes = shown[..., np.newaxis], (1, 2)
    high = sample.max(axis=axes, where=where, initial=0)
    low = np.minimum(sample.min(axis=axes, where=where, initial=255), high)
    count = np.maximum(shown.sum(axis=axes), 1)[:, np.newaxis]
    mean = sample.sum(axis=axes, where=where) / count
    spread = (sample - mean[:, np.newaxis, np.newaxis]) ** 2
    deviation = np.sqrt(spread.sum(axis=axes, where=where) / count)
    return np.stack([high.max(axis=1), (high - low).max(axis=1), deviation.max(axis=1)])


def _name(items: Sequence[Record], rows: np.ndarray) -> str:
    names = ", ".join(items[row].path for row in rows[:_NAMED])
    return f"{names} and {len(rows) - _NAMED} more" if len(rows) > _NAMED else names
