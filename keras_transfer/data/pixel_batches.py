"""Pixels on their way to the store, a shard at a time: by one process, or by several hosts."""

from collections.abc import Callable, Container, Sequence
from pathlib import Path

import numpy as np

from keras_transfer.data.reading import Picture
from keras_transfer.features.entry import Entry
from keras_transfer.features.recipe import Recipe
from keras_transfer.features.shards import SHARD_BYTES, explained, write_shard


class PixelBatches:
    """Collects decoded pictures and hands them on in shards.

    `holds` says whether a digest's pixels are stored already; `write` stores new ones. Copies of
    one file in one source may be decoded twice; they are stored once.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        holds: Callable[[str], bool],
        write: Callable[[Sequence[str], np.ndarray], None],
    ):
        self.num_decoded = 0
        self.holds, self._write = holds, write
        self._size = max(1, SHARD_BYTES // recipe.row_bytes)
        self._waiting: dict[str, np.ndarray] = {}

    @classmethod
    def into(cls, entry: Entry) -> "PixelBatches":
        """Into an entry that this process holds."""
        return cls(
            entry.recipe, holds=lambda digest: not entry.missing([digest]), write=entry.append
        )

    def add(self, picture: Picture) -> None:
        """Take a decoded picture, and store a shard if there are enough."""
        self.num_decoded += 1
        self._waiting[picture.digest] = picture.pixels
        if len(self._waiting) == self._size:
            self.store()

    def store(self) -> None:
        """Store what is waiting."""
        if new := [digest for digest in self._waiting if not self.holds(digest)]:
            self._write(new, np.stack([self._waiting[digest] for digest in new]))
        self._waiting = {}


class NumberedShards:
    """Shards that a host writes into an entry that host 0 holds: each has numbers of its own.

    `written` lists them with their keys, for host 0 to adopt.
    """

    def __init__(self, folder: Path, recipe: Recipe, known: Container[str], numbers: range):
        self._folder, self._recipe, self._known = folder, recipe, known
        self._numbers = iter(numbers)
        self._keys: set[str] = set()
        self.written: list[tuple[int, list[str]]] = []

    def holds(self, digest: str) -> bool:
        """Whether it was stored before, or by this host."""
        return digest in self._known or digest in self._keys

    def write(self, keys: Sequence[str], rows: np.ndarray) -> None:
        """Write a shard.

        Raises:
            RunError: the disk is full, or the folder cannot be written.
        """
        number = next(self._numbers)
        with explained(self._folder):
            write_shard(self._folder, number, entry=self._recipe.digest, keys=keys, rows=rows)
        self._keys.update(keys)
        self.written.append((number, list(keys)))
