"""Shards: rows of one shape in little files with checksums, and gathering rows from many.

    shard-0.bin     the rows, one after the other, as NumPy lays them out
    shard-0.json    the entry they belong to, their keys in order, and the data's checksum

The data are written first: a shard exists when its json does. Every json is sealed with a checksum
of its own, so that a flipped bit anywhere is found.
"""

import json
import mmap
import os
import re
import sys
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from keras_transfer.errors import RunError
from keras_transfer.storage.atomic import replacing

_NAME: Final = re.compile(r"shard-(\d+)\.(?:bin|json)")
SHARD_BYTES: Final = 32_000_000
"""What is computed before it is written: what memory holds, and what a kill loses at most."""

_CHUNK_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class Shard:
    """One pair of files: `keys[i]` names row `i` of the data."""

    folder: Path
    number: int
    keys: tuple[str, ...]
    num_bytes: int
    crc32: int

    @property
    def data_file(self) -> Path:
        return self.folder / f"shard-{self.number}.bin"

    @property
    def keys_file(self) -> Path:
        return self.folder / f"shard-{self.number}.json"

    def damage(self) -> str:
        """Read all data and tell what is wrong with them; '' if they are what was written.

        Raises:
            OSError: they cannot be read, which says nothing about them.
        """
        buffer = bytearray(_CHUNK_BYTES)
        crc32 = size = 0
        try:
            with self.data_file.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    crc32 = zlib.crc32(memoryview(buffer)[:count], crc32)
                    size += count
        except FileNotFoundError:
            return f"{self.data_file.name} is missing"
        if size != self.num_bytes:
            return f"{self.data_file.name} has {size:,} instead of {self.num_bytes:,} bytes"
        return "" if crc32 == self.crc32 else f"{self.data_file.name} is not what was written"


def shard_numbers(folder: Path) -> list[int]:
    """The numbers of all shards in a folder, whole or not, in order."""
    matches = (_NAME.fullmatch(name) for name in os.listdir(folder))
    return sorted({int(match[1]) for match in matches if match})


def read_shard(folder: Path, number: int, *, entry: str) -> Shard:
    """Read a shard's json; the data are looked at by `Shard.damage` only.

    Raises:
        ValueError: the json is missing or damaged, or belongs to another entry.
    """
    file = folder / f"shard-{number}.json"
    content = read_sealed(file)
    if content.get("entry") != entry:
        raise ValueError(f"{file.name} belongs to other rows")
    return Shard(folder, number, tuple(content["keys"]), content["num_bytes"], content["crc32"])


def write_shard(
    folder: Path, number: int, *, entry: str, keys: Sequence[str], rows: np.ndarray
) -> Shard:
    """Write rows [len(keys), ...] and their keys, complete and on disk.

    Raises:
        RunError: the disk is full, or the folder cannot be written; no shard was added.
    """
    # Should two processes write the same shard, neither gets in the other's way.
    writer = f".{uuid.uuid4().hex[:8]}"
    data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
    shard = Shard(folder, number, tuple(keys), data.nbytes, zlib.crc32(data))
    with replacing(shard.data_file, writer=writer) as path, path.open("wb") as file:
        file.write(data)
    try:
        content = {"entry": entry, "num_bytes": shard.num_bytes, "crc32": shard.crc32}
        write_sealed(shard.keys_file, {**content, "keys": list(keys)}, writer=writer)
    except BaseException:
        shard.data_file.unlink()
        raise
    return shard


def remove_shard(folder: Path, number: int) -> None:
    """Remove what there is of a shard, its json first: from then on it does not exist."""
    for suffix in (".json", ".bin"):
        (folder / f"shard-{number}{suffix}").unlink(missing_ok=True)


def write_sealed(file: Path, content: dict[str, Any], *, writer: str = "") -> None:
    """Write plain values as JSON with a checksum, beside and renamed into place."""
    with replacing(file, writer=writer) as path:
        path.write_text(_sealed(content), encoding="ascii")


def read_sealed(file: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Raises:
        ValueError: the file is missing, or any of its bytes is not what was written.
    """
    try:
        text = file.read_text(encoding="ascii")
        content = json.loads(text)["content"]
        if _sealed(content) == text:
            return content
    except FileNotFoundError as error:
        raise ValueError(f"{file.name} is missing") from error
    except (ValueError, TypeError, LookupError):
        pass  # Neither JSON nor what we write.
    raise ValueError(f"{file.name} is not what was written")


def _sealed(content: dict[str, Any]) -> str:
    text = json.dumps(content, allow_nan=False)
    return f'{{"crc32": {zlib.crc32(text.encode())}, "content": {text}}}\n'


class Rows:
    """Rows gathered from memory-mapped shards: `rows[3]`, `rows[5:9]` and `rows[[7, 7, 2]]`.

    Read-only; every index gives a copy. The maps stay open when the cache has been closed, and
    readable when the files have been removed. Several threads may read at once. Pickled, they are
    names of files and places in them, which another process maps anew.
    """

    def __init__(
        self, files: Sequence[Path], where: np.ndarray, *, shape: Sequence[int], dtype: np.dtype
    ):
        """Take row `where[i, 1]` of the data in `files[where[i, 0]]` as row `i`."""
        self._files = files
        self._maps = [_mapped(file) for file in files]
        self._arrays = [np.frombuffer(m, dtype).reshape(-1, *shape) for m in self._maps]
        self._where = where
        self.shape = (len(where), *shape)
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, were they copied."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: Any) -> np.ndarray:
        where = self._where[index]
        flat = where.reshape(-1, 2).tolist()
        rows = np.empty((len(flat), *self.shape[1:]), self.dtype)
        # Row by row beats one gather a shard up to 20 times: a batch has few rows in each.
        for i, (shard, row) in enumerate(flat):
            rows[i] = self._arrays[shard][row]
        return rows.reshape((*where.shape[:-1], *self.shape[1:]))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rows, (self._files, self._where, self.shape[1:], self.dtype)

    def part(self, rows: np.ndarray) -> "Rows":
        """Some of the rows as they are, of the files that hold them only."""
        where = self._where[rows]
        used, numbers = np.unique(where[:, 0], return_inverse=True)
        files = [self._files[number] for number in used]
        places = np.stack([numbers, where[:, 1]], axis=1)
        return Rows(files, places, shape=self.shape[1:], dtype=self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows are gathered from several files: that is always a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def release(self) -> None:
        """Let go of the memory of pages read so far; they are read again where needed."""
        if sys.platform != "win32":
            for pages in self._maps:
                pages.madvise(mmap.MADV_DONTNEED)


def _rows(files: Sequence[Path], where: np.ndarray, shape: Sequence[int], dtype: Any) -> Rows:
    return Rows(files, where, shape=shape, dtype=dtype)


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn failures to read and write below `folder` into errors that name the cache's fields.

    Raises:
        RunError: the disk is full, or the folder cannot be read or written.
    """
    fix = (
        "free some space, set cache.folder to a place with room that this user may write to, "
        "or set cache.mode=off; what was stored before is safe"
    )
    try:
        yield
    except RunError as error:
        raise RunError(
            error.what, expected=error.expected, received=error.received, fix=fix
        ) from error
    except OSError as error:
        raise RunError(
            f"the cache in {folder} cannot be used",
            expected="a folder that this user may read and write, with free space",
            received=f"{error.strerror or error}" + f" ({error.filename})" * bool(error.filename),
            fix=fix,
        ) from error
