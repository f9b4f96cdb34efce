"""Lists the images of a folder, and what is ignored in it, by reason."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keras_transfer.data.file_kinds import EXTENSIONS, irregularity, is_of_tool, other_format
from keras_transfer.data.records import counted

_NUM_EXAMPLES, _MOST_NAMED = 3, 10

NO_CLASS, EMPTY = "no class", "empty"
_HIDDEN, _TOOL, _SPECIAL, _FORMAT, _OTHER, _AGAIN = (
    *("hidden", "tool", "special", "format", "other", "again"),
)
_WORDS: Final = {
    NO_CLASS: ("image outside of class folders", "images outside of class folders", ""),
    _FORMAT: (
        "image of a format that is not read",
        "images of formats that are not read",
        "; convert them to PNG or JPEG",
    ),
    _OTHER: ("file that is no image", "files that are no images", ""),
    _HIDDEN: ("hidden file or folder", "hidden files and folders", ""),
    _TOOL: ("file or folder of another program", "files and folders of other programs", ""),
    _SPECIAL: ("entry that cannot be read", "entries that cannot be read", ""),
    _AGAIN: ("link to a folder that is read anyway", "links to folders that are read anyway", ""),
    EMPTY: ("folder without images", "folders without images", ""),
}
"""The singular and plural of what is ignored, and what to do about it."""


@dataclass
class Ignored:
    """What a source leaves out: by reason, each path with its kind and how often that counts."""

    _found: defaultdict[str, list[tuple[str, str, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, reason: str, path: str, kind: str = "", count: int = 1) -> None:
        """Note a path; kinds are counted in parentheses."""
        self._found[reason].append((path, kind, count))

    def notes(self, below: Sequence[str] = ()) -> list[str]:
        """One sentence for each reason, with numbers and examples; `below` chooses folders."""
        starts = tuple(f"{folder}/" for folder in below) or ("",)
        sentences = []
        for reason, (one, several, fix) in _WORDS.items():
            found = [entry for entry in self._found[reason] if entry[0].startswith(starts)]
            if not found:
                continue
            kinds: Counter[str] = Counter()
            for _, kind, count in found:
                kinds[kind] += count
            counts = ", ".join(f"{k} {count}" for k, count in kinds.most_common(5) if k and count)
            num_named = _MOST_NAMED if reason == _SPECIAL else _NUM_EXAMPLES
            examples = ", ".join(path for path, _, _ in found[:num_named])
            sentences.append(
                f"{counted(len(found), one, several)} ignored{f' ({counts})' if counts else ''}, "
                f"such as {examples}{fix}"
            )
        return sentences


class FolderListing:
    """The images and sub-folders below `root`; paths are relative to it, with '/'.

    Links are followed. Files are judged by content, except that a file with an image's suffix is
    always taken for an image: the audit tells if it is none.
    """

    def __init__(self, root: Path):
        self.root, self.ignored = root, Ignored()
        self._listed: dict[str, tuple[list[str], list[str]]] = {}

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly in a folder, sorted."""
        return self._list(folder)[0]

    def files(self, folder: str = "") -> list[str]:
        """Names of the images directly in a folder, sorted."""
        return self._list(folder)[1]

    def images(self, folder: str) -> Iterator[str]:
        """Paths of all images below a folder; those of the folder itself come first.

        Raises:
            OSError: a folder cannot be listed.
        """
        above = (path.stat() for path in (self.root, *self.root.parents))
        yield from self._walk(folder, {(status.st_dev, status.st_ino) for status in above})

    def _walk(self, folder: str, visited: set[tuple[int, int]]) -> Iterator[str]:
        status = (self.root / folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            self.ignored.add(_AGAIN, folder)
            return
        visited.add((status.st_dev, status.st_ino))
        yield from (_joined(folder, name) for name in self.files(folder))
        for name in self.folders(folder):
            yield from self._walk(_joined(folder, name), visited)

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        if folder not in self._listed:
            folders: list[str] = []
            files: list[str] = []
            with os.scandir(self.root / folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    is_folder = _is_folder(entry)
                    if self._is_kept(entry, _joined(folder, entry.name), is_folder=is_folder):
                        (folders if is_folder else files).append(entry.name)
            self._listed[folder] = folders, files
        return self._listed[folder]

    def _is_kept(self, entry: os.DirEntry[str], path: str, *, is_folder: bool) -> bool:
        """Whether it is a folder or an image; all else is noted."""
        if is_of_tool(entry.name, is_folder=is_folder):
            self.ignored.add(_TOOL, path)
        elif entry.name.startswith("."):
            num_images = _count_by_suffix(self.root / path) if is_folder else 0
            self.ignored.add(_HIDDEN, path, "images in them", num_images)
        elif is_folder:
            return True
        elif reason := irregularity(Path(entry.path)):
            self.ignored.add(_SPECIAL, path, reason)
        else:
            return self._is_image(path)
        return False

    def _is_image(self, path: str) -> bool:
        try:
            kind = other_format(self.root / path)
        except OSError as error:
            self.ignored.add(_SPECIAL, path, (error.strerror or "cannot be read").lower())
            return False
        if kind:
            self.ignored.add(_FORMAT, path, kind)
        elif kind is not None:
            self.ignored.add(_OTHER, path, Path(path).suffix.lower() or "without suffix")
        return kind is None


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself, for example.
        return False


def _count_by_suffix(folder: Path) -> int:
    """How many files below a folder have an image's suffix."""
    return sum(
        Path(name).suffix.lower() in EXTENSIONS for _, _, names in os.walk(folder) for name in names
    )
