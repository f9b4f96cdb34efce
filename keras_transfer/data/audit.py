"""The audit: every file is opened before training, and its pixels are kept.

Nothing trains on a picture that was not read here, and nothing stands in for one that could not
be: it is named, counted and left out, or the run stops. Pixels are stored by the content of the
file, so a picture that was decoded once, in any run, is read and checked but not decoded again.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_transfer.data.encoded import Encoded
from keras_transfer.data.images import DECODER_VERSION
from keras_transfer.data.reading import Picture, read_new_pixels
from keras_transfer.data.records import BadFile, Record, Records, counted
from keras_transfer.errors import DataError
from keras_transfer.features.entry import Entry
from keras_transfer.features.shards import SHARD_BYTES, Rows
from keras_transfer.features.store import Recipe, Store
from keras_transfer.specs import DataSpec
from keras_transfer.terminal import Narrator

_CHANNELS = 3
_NAMED_IN_ERRORS = 10


class Audited(NamedTuple):
    """The readable records, with digests, their pixels, and how many had to be decoded.

    `pixels` is uint8 [N, S, S, 3], mapped from the store: row i belongs to record i.
    """

    records: Records
    pixels: Rows
    num_decoded: int


def pixels_recipe(spec: DataSpec) -> Recipe:
    """What stored pixels are a function of, beside the bytes of their file."""
    size = spec.image_size
    return Recipe(
        kind="pixels",
        title=f"pixels, {size} px by {spec.resize!r}",
        content={
            "image_size": size,
            "resize": spec.resize,
            "decoder": DECODER_VERSION,
            "tensorflow": tf.__version__,
        },
        shape=(size, size, _CHANNELS),
        dtype="uint8",
    )


def audit(records: Records, spec: DataSpec, *, store: Store, narrator: Narrator) -> Audited:
    """Read and check every picture; decode and resize those whose pixels are not stored yet.

    Args:
        records: what the source lists; rows keep their order.
        spec: size, resize mode, size limit, and what to do with unreadable files.
        store: where pixels are kept, by the files' digests.

    Raises:
        DataError: unreadable files where `spec.on_bad_file` is 'error', or a class or split
            without any readable file.
        RunError: there is no room for the pixels.
    """
    with store.opened(pixels_recipe(spec)) as (entry,):
        audited, unusual, num_decoded = _read_all(records, spec, entry, narrator)
        _check_bad_files(audited, records, spec)
        pixels = entry.rows([record.digest for record in audited.items])
    notes = [*records.notes, *_notes_on_files(unusual), *_notes_on_copies(audited.items)]
    return Audited(dataclasses.replace(audited, notes=tuple(notes)), pixels, num_decoded)


def _read_all(
    records: Records, spec: DataSpec, entry: Entry, narrator: Narrator
) -> tuple[Records, Counter[str], int]:
    """Store the pixels that are missing; count what is unusual, and what was decoded."""
    good: list[Record] = []
    bad: list[BadFile] = []
    unusual: Counter[str] = Counter()
    batch = _Batch(entry, max(1, SHARD_BYTES // entry.recipe.row_bytes))
    results = read_new_pixels(
        (records.file(row) for row in range(len(records.items))),
        known=batch.holds,
        image_size=spec.image_size,
        resize=spec.resize,
        max_megapixels=spec.max_megapixels,
    )
    with narrator.counting("reading pictures") as count:
        for done, (record, result) in enumerate(zip(records.items, results, strict=True), 1):
            if isinstance(result, BadFile):
                bad.append(BadFile(record.path, result.reason))
            else:
                good.append(dataclasses.replace(record, digest=result.encoded.digest))
                unusual.update(_traits(result.encoded))
            if isinstance(result, Picture):
                batch.add(result)
            count(done, len(records.items))
    batch.store()
    audited = dataclasses.replace(records, items=tuple(good), bad_files=(*records.bad_files, *bad))
    return audited, unusual, batch.num_decoded


class _Batch:
    """Pixels on their way to the store, a shard at a time."""

    def __init__(self, entry: Entry, size: int):
        self.entry, self.size = entry, size
        self.waiting: dict[str, np.ndarray] = {}
        self.num_decoded = 0

    def holds(self, digest: str) -> bool:
        return not self.entry.missing([digest])

    def add(self, picture: Picture) -> None:
        """Copies of one file in one source may be decoded twice; they are stored once."""
        self.num_decoded += 1
        self.waiting[picture.digest] = picture.pixels
        if len(self.waiting) == self.size:
            self.store()

    def store(self) -> None:
        digests = list(self.waiting)
        if new := [digests[place] for place in self.entry.missing(digests)]:
            self.entry.append(new, np.stack([self.waiting[digest] for digest in new]))
        self.waiting = {}


def _check_bad_files(audited: Records, records: Records, spec: DataSpec) -> None:
    if audited.bad_files and spec.on_bad_file == "error":
        raise DataError(
            f"{counted(len(audited.bad_files), 'file', 'files')} of {len(records.items)} below "
            f"{records.root} cannot be read, and data.on_bad_file=error",
            expected="readable pictures only",
            received=_name_some(audited.bad_files),
            fix="repair or remove them, or set data.on_bad_file=skip to leave them out",
        )
    reasons = {file.path: file for file in audited.bad_files}
    for field, words in (("label", "class"), ("split", "split")):
        readable = {getattr(record, field) for record in audited.items}
        for name in sorted({getattr(record, field) or "" for record in records.items} - {""}):
            if name not in readable:
                paths = [item.path for item in records.items if getattr(item, field) == name]
                raise DataError(
                    f"{words} {name!r} has no readable picture",
                    expected=f"at least one readable file out of its {len(paths)}",
                    received=_name_some(reasons[path] for path in paths),
                    fix=f"repair its files or remove the {words}",
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


def _notes_on_files(unusual: Counter[str]) -> Iterator[str]:
    alpha, rotated = unusual.pop("alpha", 0), unusual.pop("rotated", 0)
    if alpha:
        words = counted(alpha, "picture has", "pictures have")
        yield f"{words} an alpha channel; transparency is dropped"
    if rotated:
        words = counted(rotated, "picture carries", "pictures carry")
        yield f"{words} an EXIF rotation, which is ignored in training and serving alike"
    for name, count in sorted(unusual.items()):
        words = counted(count, "picture was", "pictures were")
        yield f"{words} converted to PNG first ({name})"


def _notes_on_copies(items: Iterable[Record]) -> Iterator[str]:
    """Sentences on files with the same bytes: harmless, contradictory, or leaking into a test."""
    copies: defaultdict[str, list[Record]] = defaultdict(list)
    for record in items:
        copies[record.digest].append(record)
    twins = [group for group in copies.values() if len(group) > 1]
    if twins:
        count = sum(len(group) - 1 for group in twins)
        yield f"{counted(count, 'picture is an exact copy', 'pictures are exact copies')} of others"
    for field, words in (("label", "under different labels"), ("split", "in different splits")):
        torn = [group for group in twins if len({getattr(item, field) for item in group}) > 1]
        if torn:
            first = torn[0][0]
            other = next(x for x in torn[0] if getattr(x, field) != getattr(first, field))
            pair = " and ".join(f"{x.path} ({getattr(x, field)})" for x in (first, other))
            yield f"{counted(len(torn), 'picture appears', 'pictures appear')} {words}: {pair}"
