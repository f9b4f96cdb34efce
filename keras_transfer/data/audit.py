"""The audit: every file is opened once, before training, and its pixels are kept.

Nothing trains on a picture that was not read here, and nothing stands in for one that could not
be: it is named, counted and left out, or the run stops.
"""

import dataclasses
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from keras_transfer.data.encoded import Encoded
from keras_transfer.data.images import Picture, read_pixels
from keras_transfer.data.records import BadFile, Record, Records, counted
from keras_transfer.errors import DataError
from keras_transfer.specs import DataSpec

Progress = Callable[[int, int], None]

_CHANNELS = 3
_NAMED_IN_ERRORS = 10


def audit(
    records: Records, spec: DataSpec, *, pixels_file: Path, on_progress: Progress | None = None
) -> tuple[Records, np.ndarray]:
    """Read, decode and resize every picture once.

    Args:
        records: what the source lists; rows keep their order.
        spec: size, resize mode, size limit, and what to do with unreadable files.
        pixels_file: written beside and renamed into place.
        on_progress: called with the number of files read so far and of all files.

    Returns:
        The readable records with their digests, the others among `bad_files`, and the pixels as
        a read-only memory map of `pixels_file`, uint8 [N, S, S, 3]: row i belongs to record i.

    Raises:
        DataError: unreadable files where `spec.on_bad_file` is 'error', a class without any
            readable file, or no room for the pixels.
    """
    num_bytes = len(records.items) * spec.image_size**2 * _CHANNELS
    beside = pixels_file.with_name(f"{pixels_file.name}.part")
    try:
        pixels_file.parent.mkdir(parents=True, exist_ok=True)
        _check_room(pixels_file, num_bytes)
        audited, pictures = _write_pixels(records, spec, beside, on_progress)
        _check_bad_files(audited, records, spec)
        beside.replace(pixels_file)
    except OSError as error:
        raise _no_room(pixels_file, num_bytes, str(error)) from error
    finally:
        beside.unlink(missing_ok=True)
    notes = [*records.notes, *_notes_on_files(pictures), *_notes_on_copies(audited.items)]
    shape = (len(audited.items), spec.image_size, spec.image_size, _CHANNELS)
    pixels = np.memmap(pixels_file, dtype=np.uint8, mode="r", shape=shape)
    return dataclasses.replace(audited, notes=tuple(notes)), pixels


def _write_pixels(
    records: Records, spec: DataSpec, file: Path, on_progress: Progress | None
) -> tuple[Records, Counter[str]]:
    """Write the readable pictures one after another; also count what is unusual about them."""
    good: list[Record] = []
    bad: list[BadFile] = []
    unusual: Counter[str] = Counter()
    # A plain file, not a memory map: on a full disk a write raises, a memory map kills.
    with file.open("wb") as stream:
        for record, result in zip(records.items, _read_all(records, spec), strict=True):
            if isinstance(result, Picture):
                stream.write(result.pixels.tobytes())
                good.append(dataclasses.replace(record, digest=result.digest))
                unusual.update(_traits(result.encoded))
            else:
                bad.append(BadFile(record.path, result.reason))
            if on_progress:
                on_progress(len(good) + len(bad), len(records.items))
    audited = dataclasses.replace(records, items=tuple(good), bad_files=(*records.bad_files, *bad))
    return audited, unusual


def _read_all(records: Records, spec: DataSpec) -> Iterator[Picture | BadFile]:
    return read_pixels(
        (records.file(row) for row in range(len(records.items))),
        image_size=spec.image_size,
        resize=spec.resize,
        max_megapixels=spec.max_megapixels,
    )


def _check_room(file: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(file.parent).free
    if free < num_bytes:
        raise _no_room(file, num_bytes, f"{free} free bytes")


def _no_room(file: Path, num_bytes: int, received: str) -> DataError:
    return DataError(
        f"the decoded pictures cannot be written to {file}",
        expected=f"a writable folder with {num_bytes} free bytes",
        received=received,
        fix="make room, write to another disk, or lower data.image_size",
    )


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
