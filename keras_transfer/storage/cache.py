"""The cache: a folder of entries within a limit of bytes; one process at a time uses an entry.

    3f2a…/          an entry, named by its cache key       3f2a….lock      its lock
    3f2a….removed/  an entry that is being removed

It keeps results for later runs: decoded images, features and logits. Locks are next to the entries,
so that removing an entry never removes a lock in use. The operating system frees the lock of a
killed process.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from keras_transfer.errors import RunError
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.entry import (
    DESCRIPTION,
    CacheKey,
    Entry,
    read_description,
    remove_entry,
    sweep_removed,
)
from keras_transfer.storage.shards import explained

_ENTRY: Final = re.compile(r"[0-9a-f]{16}")
_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True)
class EntryInfo:
    """One entry as `Cache.entries` lists it; `used` is its last use, in seconds since 1970."""

    id: str
    kind: str
    title: str
    rows: int
    num_bytes: int
    used: float


def _ignore(text: str) -> None:
    """The default for `say`."""


class Cache:
    """Arrays that are computed once and kept in one folder.

    To stay within `limit_bytes`, the least recently used entries are removed, except those in use.
    `say` is called with messages about damaged and removed entries, and about waiting for another
    process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit_bytes: int | None = None,
        say: Callable[[str], None] = _ignore,
    ):
        self.folder = folder.absolute()
        self._limit_bytes = limit_bytes
        self._say = say

    @contextmanager
    def opened(self, *cache_keys: CacheKey) -> Iterator[tuple[Entry, ...]]:
        """Lock the entries of cache keys while the block runs; missing ones are created.

        Open all entries of a task in one call: two processes that open entries one by one, in
        different orders, could wait for each other forever.

        Raises:
            RunError: the folder cannot be written.
        """
        wanted = {cache_key.id: cache_key for cache_key in cache_keys}
        with ExitStack() as held:
            with explained(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                for name in sorted(wanted):
                    held.enter_context(self._locked(name, wanted[name].title))
                sweep_removed(self.folder)
                entries = {name: self._open(cache_key) for name, cache_key in wanted.items()}
            yield tuple(entries[cache_key.id] for cache_key in cache_keys)

    def free_for(self, *cache_keys: CacheKey, enough: int | None = None) -> int:
        """Bytes that the entries of cache keys may have in total, including what they have now.

        This is the space within the limit and on the disk after removing every entry not in use.
        Where `enough` bytes are free without removing any, that number is returned without finding
        out which entries are in use.
        """
        wanted = {cache_key.id for cache_key in cache_keys}
        with explained(self.folder):
            sizes = {info.id: info.num_bytes for info in self.entries()}
        own = sum(size for name, size in sizes.items() if name in wanted)
        others = sum(sizes.values()) - own
        if enough is not None and (room := self._room(own, others)) >= enough:
            return room
        with explained(self.folder):
            free = sum(sizes[name] for name in sizes.keys() - wanted if self._is_free(name))
        return self._room(own + free, others - free)

    def _room(self, removable: int, in_use: int) -> int:
        """Bytes free if `removable` bytes of the cache were removed and `in_use` bytes kept."""
        room = shutil.disk_usage(_existing(self.folder)).free + removable
        return room if self._limit_bytes is None else max(0, min(room, self._limit_bytes - in_use))

    def entries(self) -> list[EntryInfo]:
        """All entries, the most recently used first."""
        infos = []
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            if _ENTRY.fullmatch(folder.name) and _is_entry(folder):
                # Another process may remove an entry at the same time.
                with suppress(FileNotFoundError):
                    infos.append(_info(folder))
        return sorted(infos, key=lambda info: info.used, reverse=True)

    def verify(self, name: str) -> int | None:
        """Check all files of an entry; damaged ones are reported and removed.

        Returns how many were damaged, or None if the entry is in use.
        """
        with explained(self.folder), ExitStack() as held:
            if not self._try_lock(name, held):
                return None
            try:
                cache_key, _, _ = read_description(self.folder / name)
                if cache_key.id != name:
                    raise ValueError(f"{DESCRIPTION} belongs to {cache_key.id}")
            except ValueError as error:
                self._say(f"{name} is damaged ({error}) and was removed")
                remove_entry(self.folder / name)
                return 1
            entry = self._entry(cache_key)
            entry.check()
            return entry.num_damaged

    def remove(self, name: str) -> bool:
        """Remove an entry; False if it is in use."""
        with explained(self.folder), ExitStack() as held:
            if not self._try_lock(name, held):
                return False
            remove_entry(self.folder / name)
            return True

    def _open(self, cache_key: CacheKey) -> Entry:
        entry = self._entry(cache_key)
        (
            self.folder / cache_key.id / DESCRIPTION
        ).touch()  # Its modification time is the time of the last use.
        return entry

    def _entry(self, cache_key: CacheKey) -> Entry:
        return Entry(
            self.folder / cache_key.id, cache_key, say=self._say, make_room=self._make_room
        )

    @contextmanager
    def _locked(self, name: str, title: str) -> Iterator[None]:
        lock = self._lock(name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._say(f"Waiting for another process that uses the stored {title}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _lock(self, name: str) -> FileLock:
        file = self.folder / f"{name}.lock"
        return FileLock(file, poll_interval=_POLL_SECONDS, thread_local=False)

    def _try_lock(self, name: str, held: ExitStack) -> bool:
        try:
            held.enter_context(self._lock(name).acquire(timeout=0))
        except Timeout:
            return False
        return True

    def _is_free(self, name: str) -> bool:
        with ExitStack() as held:
            return self._try_lock(name, held)

    def _make_room(self, num_bytes: int) -> None:
        """Remove the least recently used entries until `num_bytes` more fit within the limit."""
        if self._limit_bytes is None:
            return
        infos = self.entries()
        excess = sum(info.num_bytes for info in infos) + num_bytes - self._limit_bytes
        chosen = []
        with ExitStack() as held:
            # All entries to be removed are locked first, so that none is removed without need.
            for info in reversed(infos):
                if excess > 0 and self._try_lock(info.id, held):
                    chosen.append(info)
                    excess -= info.num_bytes
            if excess > 0:
                raise self._too_full(excess)
            for info in chosen:
                with explained(self.folder):
                    remove_entry(self.folder / info.id)
                self._say(
                    f"Removed the stored {info.title} ({info.num_bytes / 1e6:,.0f} MB), used least "
                    "recently, to stay within cache.limit_gb"
                )

    def _too_full(self, excess: int) -> RunError:
        assert self._limit_bytes is not None
        return RunError(
            f"the cache in {self.folder} has reached its limit",
            expected=f"at most cache.limit_gb={self._limit_bytes / 1e9:g}",
            received=f"{excess / 1e9:.2g} GB more, and no entry that could be removed",
            fix="raise cache.limit_gb, or set cache.mode=off",
        )


def _info(folder: Path) -> EntryInfo:
    sizes = dict(_sizes(folder))
    num_bytes = sum(sizes.values())
    try:
        cache_key, _, _ = read_description(folder)
    except ValueError:
        used = folder.stat().st_mtime
        return EntryInfo(folder.name, "", "rows of a damaged entry", 0, num_bytes, used)
    data_bytes = sum(size for name, size in sizes.items() if name.endswith(".bin"))
    used = (folder / DESCRIPTION).stat().st_mtime
    num_rows = data_bytes // cache_key.row_bytes
    return EntryInfo(folder.name, cache_key.kind, cache_key.title, num_rows, num_bytes, used)


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as files:
        for file in files:
            # A partial file may be renamed at the same time.
            with suppress(FileNotFoundError):
                yield file.name, file.stat().st_size


def _is_entry(folder: Path) -> bool:
    """Whether a folder is an entry, even if its description is missing."""
    return (folder / DESCRIPTION).is_file() or any(folder.glob("shard-*.json"))


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def home() -> Path:
    """$KERAS_TRANSFER_HOME, or ~/.cache/keras_transfer."""
    default = Path.home() / ".cache" / "keras_transfer"
    return Path(os.environ.get("KERAS_TRANSFER_HOME") or default).expanduser().absolute()


def feature_folder(folder: str = "") -> Path:
    """The folder of `cache.folder`; '' is features/ below `home()`."""
    return Path(folder).expanduser().absolute() if folder else home() / "features"


@contextmanager
def open_cache(
    spec: RunSpec, *, reporter: Reporter, scratch: Path | None = None
) -> Iterator[Cache]:
    """The shared cache; with cache.mode=off a temporary one, which is removed at the end.

    Args:
        scratch: an existing folder for the temporary one; None is the system's folder.
    """
    if spec.cache.mode != "off":
        limit = int(spec.cache.limit_gb * 1e9)
        yield Cache(feature_folder(spec.cache.folder), limit_bytes=limit, say=reporter.info)
        return
    with tempfile.TemporaryDirectory(prefix="pixels-", dir=scratch) as folder:
        yield Cache(Path(folder), say=reporter.info)
