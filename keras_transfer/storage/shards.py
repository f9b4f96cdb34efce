"""Shards: files of rows of one shape with checksums, and arrays of rows from many shards.

    shard-0.bin     the rows, one after the other, as NumPy stores them
    shard-0.json    the entry they belong to, their keys in order, and the checksum of the data

The data are written first: a shard exists once its json does. Every json has a checksum, too, so
that a single changed bit anywhere is found.
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
"""Bytes of a shard: kept in memory until it is written, and the most that a kill can lose."""

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
        """Read all data and describe their damage; '' if they are undamaged.

        Raises:
            OSError: they cannot be read, which is not always damage.
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
        return "" if crc32 == self.crc32 else f"{self.data_file.name} has changed"


def shard_numbers(folder: Path) -> list[int]:
    """The numbers of all shards in a folder, complete or not, in order."""
    matches = (_NAME.fullmatch(name) for name in os.listdir(folder))
    return sorted({int(match[1]) for match in matches if match})


def read_shard(folder: Path, number: int, *, entry: str) -> Shard:
    """Read a shard's json; only `Shard.damage` reads the data.

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
    """Write rows [len(keys), ...] and their keys, and flush them to the disk.

    Raises:
        RunError: the disk is full, or the folder cannot be written; no shard was added.
    """
    # Two processes may write the same shard at the same time.
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
    """Remove the files of a shard, its json first."""
    for suffix in (".json", ".bin"):
        (folder / f"shard-{number}{suffix}").unlink(missing_ok=True)


def write_sealed(file: Path, content: dict[str, Any], *, writer: str = "") -> None:
    """Write plain values as JSON with a checksum, atomically."""
    with replacing(file, writer=writer) as path:
        path.write_text(_sealed(content), encoding="ascii")


def read_sealed(file: Path) -> dict[str, Any]:
    """Read a file of `write_sealed`.

    Raises:
        ValueError: the file is missing, or any of its bytes has changed.
    """
    try:
        text = file.read_text(encoding="ascii")
        content = json.loads(text)["content"]
        if _sealed(content) == text:
            return content
    except FileNotFoundError as error:
        raise ValueError(f"{file.name} is missing") from error
    except (ValueError, TypeError, LookupError):
        pass  # Not JSON, or JSON of another form.
    raise ValueError(f"{file.name} has changed")


def _sealed(content: dict[str, Any]) -> str:
    text = json.dumps(content, allow_nan=False)
    return f'{{"crc32": {zlib.crc32(text.encode())}, "content": {text}}}\n'


class Rows:
    """Rows from memory-mapped shards: `rows[3]`, `rows[5:9]` and `rows[[7, 7, 2]]`.

    Read-only; every index returns a copy. The rows stay readable after the cache was closed and
    after the files were removed. Several threads may read at once. Pickling stores file names and
    positions; unpickling maps the files again.
    """

    def __init__(
        self, files: Sequence[Path], where: np.ndarray, *, shape: Sequence[int], dtype: np.dtype
    ):
        """Row `i` is row `where[i, 1]` of the data in `files[where[i, 0]]`."""
        self._files = files
        self._maps = [_mapped(file) for file in files]
        self._arrays = [np.frombuffer(m, dtype).reshape(-1, *shape) for m in self._maps]
        self._where = where
        self.shape = (len(where), *shape)
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as one array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: Any) -> np.ndarray:
        where = self._where[index]
        flat = where.reshape(-1, 2).tolist()
        rows = np.empty((len(flat), *self.shape[1:]), self.dtype)
        # Up to 20 times as fast as one gather per shard: a batch has few rows in each shard.
        for i, (shard, row) in enumerate(flat):
            rows[i] = self._arrays[shard][row]
        return rows.reshape((*where.shape[:-1], *self.shape[1:]))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rows, (self._files, self._where, self.shape[1:], self.dtype)

    def part(self, rows: np.ndarray) -> "Rows":
        """Some of the rows, with only the files that contain them."""
        where = self._where[rows]
        used, numbers = np.unique(where[:, 0], return_inverse=True)
        files = [self._files[number] for number in used]
        places = np.stack([numbers, where[:, 1]], axis=1)
        return Rows(files, places, shape=self.shape[1:], dtype=self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows come from several files, so that a copy is always needed")
        return self[:].astype(dtype or self.dtype, copy=False)

    def release(self) -> None:
        """Free the memory of pages read so far; they are read again when needed."""
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
    """Turn failed reads and writes below `folder` into errors that give the cache's fields.

    Raises:
        RunError: the disk is full, or the folder cannot be read or written.
    """
    fix = (
        "free some space, set cache.folder to a writable folder with free space, "
        "or set cache.mode=off; rows stored earlier are kept"
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
