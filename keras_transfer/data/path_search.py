"""Finds the files of a table, also where paths are written another way, and guesses what is wrong.

What leads to exactly one file is read and noted: backslashes, accents as one character or two, or a
missing suffix. What is only likely, such as a name without its folder, is a hint in an error.
"""

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from keras_transfer.data.file_kinds import EXTENSIONS
from keras_transfer.data.records import counted

_MOST_TRIED: Final = 100
"""Missing paths that are compared with the files that there are."""

_MOST_SEARCHED: Final = 50_000
"""Files below the table's folder that are compared with them."""

BACKSLASHES = "with backslashes"
OTHER_FORM = "with accents in another form of Unicode"
NO_SUFFIX = "without suffix"


class PathFinder:
    """The paths of the cells of a table in the folder `root`."""

    def __init__(self, root: Path):
        self._root = root
        self._mended: Counter[str] = Counter()
        self._example: dict[str, str] = {}

    def path(self, cell: str) -> str:
        """The path relative to the root where it is below that folder, else absolute."""
        path = self._joined(cell)
        if not os.path.exists(path):
            for kind, others in self._others(cell):
                found = [other for other in others if os.path.isfile(other)]
                if len(found) == 1:
                    self._mended[kind] += 1
                    self._example.setdefault(kind, cell)
                    path = found[0]
                    break
        is_below = path.is_relative_to(self._root)
        return (path.relative_to(self._root) if is_below else path).as_posix()

    def exists(self, path: str) -> bool:
        """Whether one of the paths leads to anything."""
        return os.path.exists(self._root / path)

    def notes(self) -> list[str]:
        """A sentence for each kind of path that was written another way."""
        return [
            f"{counted(count, 'path', 'paths')} {kind} read as the file that there is, such as "
            f"{self._example[kind]}"
            for kind, count in self._mended.items()
        ]

    def _joined(self, cell: str) -> Path:
        return Path(os.path.normpath(self._root / os.path.expanduser(cell)))

    def _others(self, cell: str) -> Iterator[tuple[str, list[Path]]]:
        slashes = cell.replace("\\", "/")
        if slashes != cell:
            yield BACKSLASHES, [self._joined(slashes)]
        forms = {unicodedata.normalize(form, slashes) for form in ("NFC", "NFD")} - {slashes}
        yield OTHER_FORM, [self._joined(form) for form in sorted(forms)]
        suffixes = sorted({*EXTENSIONS, *(suffix.upper() for suffix in EXTENSIONS)})
        yield NO_SUFFIX, [self._joined(slashes + suffix) for suffix in suffixes]


def suspect(paths: Sequence[str], root: Path) -> str:
    """Where the files of missing paths may be, as a sentence; '' without a suspicion."""
    tried = list(itertools.islice(paths, _MOST_TRIED))
    for path in tried:
        parts = [part for part in re.split(r"[/\\]", path) if part]
        for start in range(1, len(parts)):
            tail = "/".join(parts[start:])
            if os.path.isfile(root / tail):
                return f"{path} may be {tail} below {root}: write paths relative to that folder"
    files = list(itertools.islice(_files_below(root), _MOST_SEARCHED))
    by_name = {os.path.basename(file).casefold(): file for file in files}
    by_stem = {os.path.splitext(name)[0]: file for name, file in by_name.items()}
    for path in tried:
        name = re.split(r"[/\\]", path)[-1].casefold()
        if file := by_name.get(name) or by_stem.get(name) or by_stem.get(os.path.splitext(name)[0]):
            return f"{path} may be {file} below {root}: write paths relative to that folder"
    return ""


def _files_below(root: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield Path(parent, name).relative_to(root).as_posix()
