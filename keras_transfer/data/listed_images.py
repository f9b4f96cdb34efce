"""Images that a run lists in splits.json, found by their content where they are now.

Only listed images are used: other files and folders may be there as well. An image that has another
name, or is in another folder below the place, is found by the SHA-256 of its file.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from keras_transfer.data.records import Record, counted
from keras_transfer.data.sources import read_records
from keras_transfer.errors import DataError, enumerated
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import DataSpec
from keras_transfer.storage.checksums import sha256_of

_NUM_THREADS: Final = 4
_NAMED: Final = 5


def find_listed(
    listed: Sequence[Record], spec: DataSpec, *, reporter: Reporter
) -> tuple[tuple[Record, ...], Path]:
    """The records with the paths where their files are now, and the folder of these paths.

    Args:
        listed: with the digests of their files.
        spec: `path` is the place, which may be another one than when they were listed.

    Raises:
        DataError: the place does not exist, or images are missing or have changed there.
    """
    root = _root(spec)
    with reporter.progress("looking for the run's images") as count:
        digests = []
        for digest in _digests(root / record.path for record in listed):
            digests.append(digest)
            count(len(digests), len(listed))
    astray = [
        record for record, digest in zip(listed, digests, strict=True) if digest != record.digest
    ]
    paths = _search(root, astray) if astray else {}
    if lost := [record for record in astray if record.digest not in paths]:
        raise _lost(lost, len(listed), root)
    if astray:
        words = counted(len(astray), "image was", "images were")
        reporter.info(f"{words} found by content under another name below {root}.")
    moved = {record.path for record in astray}
    found = (
        dataclasses.replace(record, path=paths[record.digest]) if record.path in moved else record
        for record in listed
    )
    return tuple(found), root


def _root(spec: DataSpec) -> Path:
    """The folder of relative paths: of a CSV file its own folder."""
    if spec.source == "tfds":
        return read_records(spec).root  # Unpacks the data set where needed.
    path = Path(spec.path).expanduser().absolute()
    root = path.parent if spec.source == "csv" and not path.is_dir() else path
    if not root.is_dir():
        raise DataError(
            f"the images of the run are no longer at data.path={spec.path}",
            expected="the folder or CSV file that the run was trained on",
            received=f"no folder {root}",
            fix="give the place where they are now: data.path=…",
        )
    return root


def _digests(files: Iterable[Path]) -> Iterator[str]:
    """The SHA-256 of each file in hex, '' where it cannot be read."""
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="digests") as pool:
        yield from pool.map(_digest, files)


def _digest(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError:
        return ""


def _search(root: Path, wanted: Sequence[Record]) -> dict[str, str]:
    """Paths below `root` by digest; files of the same names are read first."""
    names = {Path(record.path).name for record in wanted}
    left = {record.digest for record in wanted}
    files = [Path(folder, name) for folder, _, names_in in os.walk(root) for name in names_in]
    files.sort(key=lambda file: (file.name not in names, file))
    found: dict[str, str] = {}
    for file in files:
        if not left:
            break
        digest = _digest(file) if file.is_file() else ""
        if digest in left:
            left.remove(digest)
            found[digest] = file.relative_to(root).as_posix()
    return found


def _lost(lost: Sequence[Record], num_listed: int, root: Path) -> DataError:
    changed = [record.path for record in lost if (root / record.path).is_file()]
    missing = [record.path for record in lost if not (root / record.path).is_file()]
    parts = [
        f"{len(paths)} {what}: {enumerated(paths, _NAMED)}"
        for what, paths in (("missing", missing), ("with other content", changed))
        if paths
    ]
    return DataError(
        f"{len(lost)} of {num_listed} images of the run are not below {root}",
        expected="files with the SHA-256 that splits.json lists, under any name",
        received="; ".join(parts),
        fix="restore them, or give the place where they are now: data.path=…",
    )
