"""The audit: every file is read before training, and its pixels are cached.

Training uses only images that were read here. An unreadable image is never replaced by anything:
it is named, counted and left out, or the run stops. Pixels are cached by the content of the file,
so an image that any run has decoded is read and checked, but not decoded again.

One process or several hosts write the pixels to the cache, one shard at a time.
"""

import dataclasses
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_transfer.data.contrast import notes_on_ranges
from keras_transfer.data.images import DECODER_VERSION, Encoded, decoding_of
from keras_transfer.data.path_search import suspect
from keras_transfer.data.reading import DecodedImage, read_new_pixels
from keras_transfer.data.records import BadFile, Record, Records, counted
from keras_transfer.devices.hosts import gather, meet, share_from_first
from keras_transfer.errors import DataError, RunError
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import COLOURS, DataSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.entry import CacheKey, Entry
from keras_transfer.storage.shards import SHARD_BYTES, Rows, explained, write_shard


class PixelBatches:
    """Collects decoded images and writes them in shards.

    `holds` returns whether a digest's pixels are cached; `write` stores new ones. Copies of a file
    in one source may be decoded twice; they are stored once.
    """

    def __init__(
        self,
        cache_key: CacheKey,
        *,
        holds: Callable[[str], bool],
        write: Callable[[Sequence[str], np.ndarray], None],
    ):
        self.num_decoded = 0
        self.holds, self._write = holds, write
        self._size = max(1, SHARD_BYTES // cache_key.row_bytes)
        self._waiting: dict[str, np.ndarray] = {}

    @classmethod
    def into(cls, entry: Entry) -> "PixelBatches":
        """Writes into an entry that this process has locked."""
        return cls(
            entry.cache_key, holds=lambda digest: not entry.missing([digest]), write=entry.append
        )

    def add(self, image: DecodedImage) -> None:
        """Add a decoded image; write a shard if there are enough."""
        self.num_decoded += 1
        self._waiting[image.digest] = image.pixels
        if len(self._waiting) == self._size:
            self.store()

    def store(self) -> None:
        """Write the images that are still in memory."""
        if new := [digest for digest in self._waiting if not self.holds(digest)]:
            self._write(new, np.stack([self._waiting[digest] for digest in new]))
        self._waiting = {}


class NumberedShards:
    """Writes shards into an entry that host 0 has locked; hosts use different shard numbers.

    `written` lists them with their keys, for host 0 to adopt.
    """

    def __init__(self, folder: Path, cache_key: CacheKey, known: Container[str], numbers: range):
        self._folder, self._cache_key, self._known = folder, cache_key, known
        self._numbers = iter(numbers)
        self._keys: set[str] = set()
        self.written: list[tuple[int, list[str]]] = []

    def holds(self, digest: str) -> bool:
        """Whether it was cached before, or written by this host."""
        return digest in self._known or digest in self._keys

    def write(self, keys: Sequence[str], rows: np.ndarray) -> None:
        """Write a shard.

        Raises:
            RunError: the disk is full, or the folder cannot be written.
        """
        number = next(self._numbers)
        with explained(self._folder):
            write_shard(self._folder, number, entry=self._cache_key.digest, keys=keys, rows=rows)
        self._keys.update(keys)
        self.written.append((number, list(keys)))


_NAMED_IN_ERRORS = 10


class Audited(NamedTuple):
    """The readable records, with digests, their pixels, and how many had to be decoded.

    `pixels` is uint8 [N, S, S, C], mapped from the cache: row i belongs to record i.
    """

    records: Records
    pixels: Rows
    num_decoded: int


def pixels_key(spec: DataSpec) -> CacheKey:
    """Cache key of pixels: all they depend on besides the bytes of their file."""
    size = spec.image_size
    return CacheKey(
        kind="pixels",
        title=f"pixels, {size} px by {spec.resize!r}",
        content={
            "image_size": size,
            "resize": spec.resize,
            "background": spec.background,
            "bit_depth": spec.bit_depth,
            "decoder": DECODER_VERSION,
            "tensorflow": tf.__version__,
            # The keys of RGB are those from before there were others.
            **({} if spec.channels == COLOURS else {"channels": spec.channels}),
        },
        shape=(size, size, spec.channels),
        dtype="uint8",
    )


def audit(records: Records, spec: DataSpec, *, cache: Cache, reporter: Reporter) -> Audited:
    """Read and check every image; decode and resize those whose pixels are not cached yet.

    Args:
        records: what the source lists; rows keep their order.
        spec: size, resize mode, size limit, and what to do with unreadable files.
        cache: where pixels are kept, by the files' digests.

    Raises:
        DataError: unreadable files where `spec.on_bad_file` is 'error', or a stratum or split
            without any readable file.
        RunError: there is no room for the pixels.
    """
    _check_paths(records)
    host, num_hosts = meet()
    if num_hosts > 1:
        return _audit_together(records, spec, cache, reporter, host=host, num_hosts=num_hosts)
    with cache.opened(pixels_key(spec)) as (entry,):
        batches = PixelBatches.into(entry)
        return _audited(records, [_read(records, spec, batches, reporter)], spec, entry)


def _check_paths(records: Records) -> None:
    """Raise DataError where at least half of the files are missing, with where they may be."""
    paths = [item.path for item in records.items]
    missing = _missing(paths, records.root)
    if missing and 2 * len(missing) >= len(paths):
        suspicion = suspect(missing, records.root)
        are_absolute = all(Path(path).is_absolute() for path in missing)
        places = (
            "of files that exist" if are_absolute else f"relative to {records.root} or absolute"
        )
        raise DataError(
            f"{len(missing)} of {counted(len(paths), 'path', 'paths')} lead to no file",
            expected=f"paths of images, {places}",
            received=", ".join(missing[:_NAMED_IN_ERRORS]),
            fix=suspicion or "correct the paths, or put the images there",
        )


def _missing(paths: Iterable[str], root: Path) -> list[str]:
    return [path for path in paths if not os.path.lexists(root / path)]


def _audit_together(
    records: Records,
    spec: DataSpec,
    cache: Cache,
    reporter: Reporter,
    *,
    host: int,
    num_hosts: int,
) -> Audited:
    """The same by several hosts: host h reads files h, h + n, …; host 0 locks the entry."""
    cache_key = pixels_key(spec)

    def read(known: set[str], first: int) -> tuple[_Found, NumberedShards]:
        numbers = range(first + host, sys.maxsize, num_hosts)
        shards = NumberedShards(cache.folder / cache_key.id, cache_key, known, numbers)
        batches = PixelBatches(cache_key, holds=shards.holds, write=shards.write)
        rows = range(host, len(records.items), num_hosts)
        return _read(records, spec, batches, reporter, rows=rows), shards

    if host:
        found, shards = read(*share_from_first(None))
        gather((found, shards.written))
        parts = share_from_first(None)
    else:
        with cache.opened(cache_key) as (entry,):
            entry.check()
            start = set(entry.keys), max(entry.numbers, default=-1) + 1
            found, shards = read(*share_from_first(start))
            parts = []
            for part, written in gather((found, shards.written)):
                parts.append(part)
                for number, keys in written:
                    entry.adopt(number, keys, is_sound=False)
        share_from_first(parts)
    with cache.opened(cache_key) as (entry,):
        return _audited(records, parts, spec, entry)


@dataclass(frozen=True)
class _Found:
    """The result of reading some rows of the records; `num_decoded` of them were new.

    `deep` has the digests of files with 16 bits.
    """

    results: dict[int, Record | BadFile]
    unusual: Counter[str]
    deep: set[str]
    num_decoded: int


def _audited(records: Records, parts: Sequence[_Found], spec: DataSpec, entry: Entry) -> Audited:
    """The results of all rows, in order, with the pixels."""
    results = {row: result for part in parts for row, result in part.results.items()}
    ordered = [results[row] for row in range(len(records.items))]
    good = tuple(result for result in ordered if isinstance(result, Record))
    bad = [result for result in ordered if isinstance(result, BadFile)]
    targets = records.targets.take(np.array([isinstance(each, Record) for each in ordered], bool))
    audited = dataclasses.replace(
        records, items=good, targets=targets, bad_files=(*records.bad_files, *bad)
    )
    _check_bad_files(audited, records, spec)
    unusual = sum((part.unusual for part in parts), Counter[str]())
    pixels = cached_pixels(good, entry)
    notes = (
        *records.notes,
        *_notes_on_files(unusual, spec),
        *notes_on_ranges(good, pixels, set().union(*(part.deep for part in parts)), spec),
        *_notes_on_copies(good),
    )
    audited = dataclasses.replace(audited, notes=notes)
    return Audited(audited, pixels, sum(part.num_decoded for part in parts))


def cached_pixels(items: Sequence[Record], entry: Entry) -> Rows:
    """Pixels of records that were read, uint8 [N, S, S, C]; RunError if the cache lost some."""
    digests = [record.digest for record in items]
    if lost := entry.missing(digests):
        raise RunError(
            f"{len(lost):,} of {len(digests):,} images are no longer in the cache",
            expected="pixels of all images that were read",
            received=f"none of {items[lost[0]].path}",
            fix="raise cache.limit_gb, make all hosts use the same folder, and run it again",
        )
    return entry.rows(digests)


def _read(
    records: Records,
    spec: DataSpec,
    batches: PixelBatches,
    reporter: Reporter,
    *,
    rows: range | None = None,
) -> _Found:
    """Read some rows, store the pixels that are missing, and count what is unusual."""
    rows = range(len(records.items)) if rows is None else rows
    found: dict[int, Record | BadFile] = {}
    unusual: Counter[str] = Counter()
    deep: set[str] = set()
    results = read_new_pixels(
        (records.file(row) for row in rows),
        known=batches.holds,
        **decoding_of(spec),
    )
    with reporter.progress("reading images") as count:
        for done, (row, result) in enumerate(zip(rows, results, strict=True), 1):
            record = records.items[row]
            if isinstance(result, BadFile):
                found[row] = BadFile(record.path, result.reason)
            else:
                found[row] = dataclasses.replace(record, digest=result.encoded.digest)
                unusual.update(_traits(result.encoded))
                if result.encoded.is_deep:
                    deep.add(result.encoded.digest)
            if isinstance(result, DecodedImage):
                batches.add(result)
            count(done, len(rows))
    batches.store()
    return _Found(found, unusual, deep, batches.num_decoded)


def _check_bad_files(audited: Records, records: Records, spec: DataSpec) -> None:
    if audited.bad_files and spec.on_bad_file == "error":
        raise DataError(
            f"{counted(len(audited.bad_files), 'file', 'files')} of {len(records.items)} below "
            f"{records.root} cannot be read, and data.on_bad_file=error",
            expected="readable images only",
            received=_name_some(audited.bad_files),
            fix="repair or remove them, or set data.on_bad_file=skip to leave them out",
        )
    _check_groups(audited, records)


def _check_groups(audited: Records, records: Records) -> None:
    """Raise DataError with all strata and splits without a readable image."""
    splits = sorted({item.split for item in records.items if item.split})
    of_splits = [np.array([item.split == name for item in records.items]) for name in splits]
    targets = records.targets
    groups = [
        *(
            (targets.kind, *pair)
            for pair in zip(targets.strata_names, targets.strata.T, strict=True)
        ),
        *(("split", *pair) for pair in zip(splits, of_splits, strict=True)),
    ]
    bad = {file.path: file for file in audited.bad_files}
    unreadable = np.array([item.path in bad for item in records.items], bool)
    empty = [
        (f"{kind} {name!r}", members)
        for kind, name, members in groups
        if members.any() and unreadable[members].all()
    ]
    if empty:
        rows = np.flatnonzero(np.any([members for _, members in empty], axis=0))
        paths = [records.items[row].path for row in rows]
        names = ", ".join(name for name, _ in empty[:_NAMED_IN_ERRORS])
        raise DataError(
            f"{names} {'has' if len(empty) == 1 else 'have'} no readable image",
            expected=f"at least one readable file out of the {len(paths)} of {names}",
            received=_name_some(bad[path] for path in paths),
            fix=suspect(_missing(paths, records.root), records.root)
            or f"repair the files or remove {names}",
        )


def _name_some(files: Iterable[BadFile]) -> str:
    texts = [f"{file.path} ({file.reason})" for file in files]
    more = [f"and {len(texts) - _NAMED_IN_ERRORS} more"] if len(texts) > _NAMED_IN_ERRORS else []
    return ", ".join(texts[:_NAMED_IN_ERRORS] + more)


def _traits(encoded: Encoded) -> Iterator[str]:
    if encoded.has_alpha:
        yield "alpha"
    if encoded.is_rotated:
        yield "rotated"
    if encoded.converted_from:
        yield encoded.converted_from


def _notes_on_files(unusual: Counter[str], spec: DataSpec) -> Iterator[str]:
    alpha, rotated = unusual.pop("alpha", 0), unusual.pop("rotated", 0)
    if alpha:
        words = counted(alpha, "image has", "images have")
        yield f"{words} transparency, shown on {spec.background} (data.background)"
    if rotated:
        words = counted(rotated, "image was", "images were")
        yield f"{words} turned upright by the EXIF orientation"
    for name, count in sorted(unusual.items()):
        words = counted(count, "image was", "images were")
        yield f"{words} converted to PNG first, which an exported model does not do ({name})"


def _notes_on_copies(items: Iterable[Record]) -> Iterator[str]:
    """Sentences on copies of files: also those with two labels, or in two splits."""
    copies: defaultdict[str, list[Record]] = defaultdict(list)
    for record in items:
        copies[record.digest].append(record)
    twins = [group for group in copies.values() if len(group) > 1]
    if twins:
        count = sum(len(group) - 1 for group in twins)
        yield f"{counted(count, 'image is an exact copy', 'images are exact copies')} of others"
    for field, words in (("label", "under different labels"), ("split", "in different splits")):
        torn = [group for group in twins if len({getattr(item, field) for item in group}) > 1]
        if torn:
            first = torn[0][0]
            other = next(x for x in torn[0] if getattr(x, field) != getattr(first, field))
            pair = " and ".join(f"{x.path} ({getattr(x, field)})" for x in (first, other))
            yield f"{counted(len(torn), 'image appears', 'images appear')} {words}: {pair}"
