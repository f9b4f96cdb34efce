"""Entries of the cache: all stored rows of one cache key, indexed by the key of the row.

    entry.json           the cache key, notes on how the rows were computed, the time of creation
    shard-0.bin …        the rows

The cache key has everything that rows depend on, except the key of a row. Its digest is in the
folder's name, in entry.json and in every shard, so that each cache key has its own entry.
"""

import contextlib
import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from keras_transfer.errors import RunError
from keras_transfer.storage.atomic import discard_partials
from keras_transfer.storage.shards import (
    Rows,
    Shard,
    explained,
    read_sealed,
    read_shard,
    remove_shard,
    shard_numbers,
    write_sealed,
    write_shard,
)

DESCRIPTION: Final = "entry.json"
_FORMAT: Final = 1
_REMOVED: Final = ".removed"
_LARGE_BYTES: Final = 2_000_000_000


@dataclass(frozen=True)
class CacheKey:
    """Everything that stored rows depend on, except the key of a row.

    `kind` is 'pixels', 'features' or 'logits'. `title` is for messages ("the stored <title>") and
    not part of the digest. `content` has JSON values. `shape` and `dtype` (a NumPy name) are those
    of one row.
    """

    kind: str
    title: str
    content: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex over everything but the title."""
        # Through JSON, so that a cache key read from disk has the same digest.
        content = json.loads(json.dumps(dict(self.content), allow_nan=False))
        whole = [_FORMAT, self.kind, content, list(self.shape), self.dtype]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    @property
    def id(self) -> str:
        """The name of the entry's folder: the digest's first 16 digits."""
        return self.digest[:16]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def write_description(
    folder: Path, cache_key: CacheKey, notes: Mapping[str, Any], created: str
) -> None:
    """Write the cache key, the notes and the creation time of the entry in `folder`."""
    described = {
        "kind": cache_key.kind,
        "title": cache_key.title,
        "content": dict(cache_key.content),
        "shape": list(cache_key.shape),
        "dtype": cache_key.dtype,
    }
    content = {"cache_key": described, "notes": dict(notes), "created": created}
    write_sealed(folder / DESCRIPTION, content)


def read_description(folder: Path) -> tuple[CacheKey, dict[str, Any], str]:
    """Read the cache key, the notes and the creation time of the entry in `folder`.

    Raises:
        ValueError: entry.json is missing or damaged.
    """
    content = read_sealed(folder / DESCRIPTION)
    try:
        cache_key = content["cache_key"]
        cache_key = CacheKey(**{**cache_key, "shape": tuple(cache_key["shape"])})
        return cache_key, content["notes"], content["created"]
    except (LookupError, TypeError) as error:
        raise ValueError(f"{DESCRIPTION} is not the description of an entry") from error


class Entry:
    """The rows of one cache key. Created by `Cache.opened`, which holds the lock in its block."""

    def __init__(
        self,
        folder: Path,
        cache_key: CacheKey,
        *,
        say: Callable[[str], None],
        make_room: Callable[[int], None],
    ):
        """Open the entry in `folder`, or create it; damaged files are reported and removed."""
        self.folder = folder
        self.cache_key = cache_key
        self.notes: dict[str, Any] = {}
        self.num_damaged = 0
        self._say = say
        self.make_room = make_room
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        self._shards: dict[int, Shard] = {}
        self._sound: set[int] = set()
        # All rows of all shards are numbered in one sequence; a shard's rows begin at its start.
        self._starts: dict[int, int] = {}
        self._places: dict[str, int] = {}
        self._end = 0
        self._read_description()
        for number in shard_numbers(folder):
            try:
                self._add(read_shard(folder, number, entry=cache_key.digest))
            except ValueError as error:
                self._discard(number, f"{error}")

    def note(self, **values: Any) -> None:
        """Store small JSON values with the entry, such as the batch size of its computation."""
        self.notes = {**self.notes, **values}
        with explained(self.folder):
            self._write_description()

    @property
    def keys(self) -> list[str]:
        """Keys of all stored rows."""
        return list(self._places)

    def missing(self, keys: Sequence[str]) -> list[int]:
        """Positions in `keys` whose rows are not stored; of equal keys only the first.

        Every shard with a requested row is checked first, once; damaged ones are removed.

        Raises:
            RunError: the data cannot be read.
        """
        first: dict[str, int] = {}
        for position, key in enumerate(keys):
            first.setdefault(key, position)
        held = (self._places.get(key, -1) for key in first)
        places = np.fromiter(held, np.int64, len(first))
        self._check(self._numbers_of(places[places >= 0]))
        return [position for key, position in first.items() if key not in self._places]

    def append(self, keys: Sequence[str], rows: np.ndarray) -> None:
        """Store rows [len(keys), *cache key.shape] under new, distinct keys, as one shard.

        Raises:
            RunError: the disk is full, the folder cannot be written, or the cache's limit is too
                low; rows stored earlier are kept.
        """
        assert rows.shape == (len(keys), *self.cache_key.shape), rows.shape
        assert rows.dtype == np.dtype(self.cache_key.dtype), rows.dtype
        assert len(set(keys)) == len(keys), "equal keys"
        assert not any(key in self._places for key in keys), "a key is stored already"
        if not keys:
            return
        self.make_room(rows.nbytes + sum(len(key) + 4 for key in keys) + 200)
        number = max(self._shards, default=-1) + 1
        with explained(self.folder):
            shard = write_shard(
                self.folder, number, entry=self.cache_key.digest, keys=keys, rows=rows
            )
        self._sound.add(number)
        self._add(shard)

    @property
    def numbers(self) -> list[int]:
        """Numbers of all shards."""
        return list(self._shards)

    def free_numbers(self) -> Iterator[int]:
        """Unused shard numbers, from the lowest up."""
        return (number for number in itertools.count() if number not in self._shards)

    def adopt(self, number: int, keys: Sequence[str], *, is_sound: bool) -> None:
        """Add a shard whose files were written into the folder under an unused number.

        Args:
            keys: the keys it must have, in order; none of them is stored already.
            is_sound: whether its data are not checked because this process has just written them.

        Raises:
            RunError: the shard is missing, or has other rows.
        """
        try:
            shard = read_shard(self.folder, number, entry=self.cache_key.digest)
            if shard.keys != tuple(keys):
                raise ValueError(f"{len(shard.keys):,} other rows")
            self._add(shard)
        except ValueError as error:
            raise RunError(
                f"shard {number} of the stored {self.cache_key.title} is not the expected one",
                expected=f"{len(keys):,} new rows in {self.folder}",
                received=f"{error}",
                fix="let every process use the same cache.folder, and run again",
            ) from error
        if is_sound:
            self._sound.add(number)

    def rows(self, keys: Sequence[str]) -> Rows:
        """The rows of keys, which may repeat; call `missing` for all of them first."""
        places = np.fromiter(map(self._places.__getitem__, keys), np.int64, len(keys))
        numbers = self._numbers_of(places)
        assert self._sound.issuperset(numbers), "call `missing` first"
        starts = np.array([self._starts[number] for number in numbers], np.int64)
        shards = np.searchsorted(starts, places, side="right") - 1
        with explained(self.folder):
            return Rows(
                [self._shards[number].data_file for number in numbers],
                np.stack([shards, places - starts[shards]], axis=1),
                shape=self.cache_key.shape,
                dtype=np.dtype(self.cache_key.dtype),
            )

    def check(self) -> None:
        """Check every shard; damaged ones are reported and removed."""
        self._check(self._shards)

    def _numbers_of(self, places: np.ndarray) -> list[int]:
        """The shards that contain some of these places, in the order of their places."""
        numbers = list(self._starts)
        starts = np.array(list(self._starts.values()), np.int64)
        return [numbers[i] for i in np.unique(np.searchsorted(starts, places, side="right") - 1)]

    def _check(self, numbers: Iterable[int]) -> None:
        unsure = [number for number in numbers if number not in self._sound]
        if not unsure:  # The usual case.
            return
        num_bytes = sum(self._shards[number].num_bytes for number in unsure)
        if num_bytes >= _LARGE_BYTES:
            self._say(f"Checking {num_bytes / 1e9:.1f} GB of the stored {self.cache_key.title}")
        # Reading and checksums release the interpreter lock: threads use all cores.
        with explained(self.folder), ThreadPoolExecutor() as pool:
            damages = list(pool.map(lambda number: self._shards[number].damage(), unsure))
            for number, damage in zip(unsure, damages, strict=True):
                if damage:
                    self._discard(number, damage)
                else:
                    self._sound.add(number)

    def _add(self, shard: Shard) -> None:
        if not self._places.keys().isdisjoint(shard.keys):
            raise ValueError("rows that are in another shard, too")
        self._shards[shard.number] = shard
        self._starts[shard.number] = self._end
        places = range(self._end, self._end + len(shard.keys))
        self._places.update(zip(shard.keys, places, strict=True))
        self._end += len(shard.keys)

    def _discard(self, number: int, reason: str) -> None:
        self._report_damage(f"{self.folder.name}/shard-{number}", reason)
        remove_shard(self.folder, number)
        self._starts.pop(number, None)
        if shard := self._shards.pop(number, None):
            for key in shard.keys:
                self._places.pop(key, None)

    def _report_damage(self, name: str, reason: str) -> None:
        self.num_damaged += 1
        self._say(
            f"{name} of the stored {self.cache_key.title} is damaged ({reason}); it was removed, "
            "and its rows are computed again when needed"
        )

    def _read_description(self) -> None:
        if not self.folder.is_dir():
            self._write_description()
            return
        discard_partials(self.folder)
        if not any(self.folder.iterdir()):  # The process was killed while creating it.
            self._write_description()
            return
        try:
            found, notes, created = read_description(self.folder)
            if found.digest != self.cache_key.digest:
                raise ValueError(f"{DESCRIPTION} belongs to another cache key")
            self.notes, self._created = notes, created
        except ValueError as error:
            self._report_damage(self.folder.name, f"{error}")
            remove_entry(self.folder)
            self._write_description()

    def _write_description(self) -> None:
        write_description(self.folder, self.cache_key, self.notes, self._created)


def remove_entry(folder: Path) -> None:
    """Remove an entry if it exists: rename its folder, then delete its files."""
    aside = folder.with_name(folder.name + _REMOVED)
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def sweep_removed(folder: Path) -> None:
    """Finish the removals that killed processes began in the cache's folder."""
    for aside in folder.glob("*" + _REMOVED):
        shutil.rmtree(aside, ignore_errors=True)
