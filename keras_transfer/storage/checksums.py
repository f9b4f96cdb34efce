"""Checksums of the files of a run or an artefact, in checksums.json next to them.

They are written when the files have been verified, and compared where the files are loaded: a
changed network would still give plausible outputs.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from keras_transfer.errors import ExportError, KerasTransferError

CHECKSUMS_FILE: Final = "checksums.json"


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write size and SHA-256 of files in a folder; `names` are relative to it."""
    content = {name: _describe(folder / name) for name in sorted(names)}
    text = json.dumps(content, indent=2) + "\n"
    (folder / CHECKSUMS_FILE).write_text(text, encoding="utf-8")


def verify_checksums(
    folder: Path,
    names: Iterable[str] | None = None,
    *,
    error: type[KerasTransferError] = ExportError,
    fix: str = "copy the folder again, or export again",
) -> None:
    """Raise `error`, which names all changed files, unless they are as they were written.

    A folder without checksums.json is not checked: it was written without verification.

    Args:
        names: relative to the folder; None are all files with a checksum.
    """
    file = folder / CHECKSUMS_FILE
    if not file.is_file():
        return
    try:
        expected: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not expected:
            raise ValueError("lists no file")
        wanted = expected if names is None else names
        damages = [f"{name}: {why}" for name in wanted if (why := _damage(folder, name, expected))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as failure:
        damages = [f"{CHECKSUMS_FILE}: {failure}"]
    if damages:
        raise error(
            f"files in {folder} are not those that were verified",
            expected=f"the sizes and hashes in {CHECKSUMS_FILE}",
            received="; ".join(damages),
            fix=fix,
        )


def _describe(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _damage(folder: Path, name: str, expected: dict[str, Any]) -> str:
    """What is wrong with a file, '' if nothing is."""
    if name not in expected:
        return "a file without a checksum, which was not written together with the others"
    file, size = folder / name, expected[name]["bytes"]
    if not file.is_file():
        return "missing"
    if (received := file.stat().st_size) != size:
        return f"{received:,} instead of {size:,} bytes"
    is_same = _describe(file)["sha256"] == expected[name]["sha256"]
    return "" if is_same else "other content of the same size"
