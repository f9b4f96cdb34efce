"""Atomic writes: files and folders are written under another name and then renamed.

    run/model.keras   is written as   run/model.partial.keras
    run/export/1      is written as   run/export/1.partial

A process that is killed leaves `*.partial*` behind, but never an incomplete file under a final
name. The suffix stays last because Keras and matplotlib choose the format by it.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from keras_transfer.errors import KerasTransferError, RunError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PARTIAL: Final = re.compile(r".+\.partial(\.[^.]+)?")
_REPLACED: Final = ".replaced"
_LONGEST_SUFFIX: Final = ".partial.partial.json"
"""Of the temporary names of an output."""


@contextlib.contextmanager
def replacing(target: Path, *, safe: str = "", writer: str = "") -> Iterator[Path]:
    """Yield the path to write to; when the block ends it is renamed to `target`.

    Works for files and folders; missing parents are created. If the block raises an error, the
    partial file is removed. A killed process leaves its partial file, which the next process
    replaces. Until the rename `target` is not changed.

    Args:
        safe: a sentence for the error of a full disk that lists what has been saved.
        writer: a suffix for the name of the partial file, beginning with a dot, if several
            processes may write the same target with the same content at once.

    Raises:
        RunError: the disk is full, or the path cannot be written.
    """
    partial = target.with_name(f"{target.stem}{writer}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _restore(target.with_name(target.name + _REPLACED))
        _remove(partial)
        yield partial
        put_in_place(partial, target)
    except Exception as error:
        with contextlib.suppress(OSError):
            _remove(partial)
        if isinstance(error, KerasTransferError) or not (isinstance(error, OSError) or full(error)):
            raise
        raise storage_error(error, target, safe=safe) from error


def put_in_place(partial: Path, target: Path) -> None:
    """Flush what was written to the disk, and rename it to `target`."""
    _sync(partial)
    _move(partial, target)


def check_vacant(output: Path) -> None:
    """Raise RunError if an output exists already, so that nothing is overwritten.

    Raises:
        RunError: as well if its name is not possible here, such as one that is too long.
    """
    if exists(output):
        raise RunError(
            f"{output} exists already",
            expected="the name of a new file, so that nothing is overwritten",
            received="a folder"
            if output.is_dir()
            else f"a file of {output.stat().st_size:,} bytes",
            fix="give another --output, or move the file away",
        )


def exists(path: Path) -> bool:
    """Whether there is a file or a folder.

    Raises:
        RunError: the file system cannot tell, for example because the name is too long.
    """
    try:
        # Below a folder that is missing, the system would not look at the names.
        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        for name in path.absolute().relative_to(folder).parts:
            with contextlib.suppress(FileNotFoundError):
                (folder / f"{name}{_LONGEST_SUFFIX}").stat()
        return path.exists()
    except (OSError, ValueError) as error:
        raise storage_error(error, path) from error


def discard_partials(folder: Path) -> None:
    """Remove the partial files of killed processes below `folder` (of this package)."""
    for path in sorted(folder.rglob("*" + _REPLACED)):
        _restore(path)
    for path in sorted(folder.rglob("*.partial*")):
        if _PARTIAL.fullmatch(path.name):
            _remove(path)


def full(error: BaseException) -> bool:
    """Whether the disk is full; HDF5 and TensorFlow report it only in the message."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(os.strerror(code) in str(error) for code in _FULL)


def storage_error(error: Exception, target: Path, *, safe: str = "") -> RunError:
    """The error of a failed write: path, reason, free space and how to fix it."""
    if full(error):
        # The file that an error of copying names is the one that was read.
        reason = error.strerror if isinstance(error, OSError) else _reason(error)
        return RunError(
            f"{target} could not be written because the disk is full",
            expected="free space, and no quota or file size limit exceeded",
            received=f"{reason}; {_free_space(target)}",
            fix="free some space, then repeat the command"
            + (f" ({safe})" if safe else "; no finished file was changed"),
        )
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return RunError(
            f"the name {target.name[:40]!r}… is too long",
            expected="a name that the file system accepts: usually at most 255 bytes, with room "
            "for the suffix of a temporary file",
            received=f"{len(os.fsencode(target.name))} bytes in a path of "
            f"{len(os.fsencode(target))}",
            fix="give a shorter --output, or a shorter name",
        )
    return RunError(
        f"{target} cannot be written",
        expected="a path this user may write to",
        received=_reason(error),
        fix="give another --output, or change the permissions of this one",
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f" ({error.filename})" if error.filename else "")
    return str(error)[:500]


def _free_space(target: Path) -> str:
    existing = next((folder for folder in target.absolute().parents if folder.is_dir()), Path("/"))
    usage = shutil.disk_usage(existing)
    return f"{usage.free / 1e6:,.1f} of {usage.total / 1e6:,.1f} MB are free at {existing}"


def _move(partial: Path, target: Path) -> None:
    if not partial.is_dir():
        os.replace(partial, target)
    else:
        # A folder cannot be replaced in one step: the old one is renamed first, so that `_restore`
        # can bring it back if the process is killed in between.
        aside = target.with_name(target.name + _REPLACED)
        if target.is_dir():
            target.rename(aside)
        partial.rename(target)
        _remove(aside)
    _sync_entry(target.parent)


def _restore(aside: Path) -> None:
    target = aside.with_name(aside.name.removesuffix(_REPLACED))
    if aside.is_dir() and not target.exists():
        aside.rename(target)
    else:
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk, so that its data are written before the rename."""
    for below in path.rglob("*") if path.is_dir() else ():
        _sync_entry(below)
    _sync_entry(path)


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
