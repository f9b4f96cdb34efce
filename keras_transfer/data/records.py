"""Records: which images there are, what they show, and where they may go.

Paths, labels and hashes only; no pixels. A record is always a file: TFDS sources are unpacked
into files once, so that splits, predictions and mistakes can always name the image.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled image.

    `path` is relative to `Records.root` where the file lies below it, absolute otherwise, always
    with forward slashes. `split` ('train', 'val' or 'test') and `group` are the source's own, None
    where it has none. `digest` is the SHA-256 of the file's bytes in hex, '' until the audit has
    read the file.
    """

    path: str
    label: str
    split: str | None = None
    group: str | None = None
    digest: str = ""

    @property
    def example_id(self) -> int:
        """A 63-bit number that depends on the image's content alone."""
        return int(self.digest[:16], 16) >> 1


@dataclass(frozen=True, slots=True)
class Found:
    """What a source lists, before it is checked: `items` in a fixed order, `root`, and `notes`."""

    items: list[Record]
    root: Path
    notes: list[str]


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Records:
    """All images of a source: rows in a fixed order, classes sorted by name."""

    items: tuple[Record, ...]
    class_names: tuple[str, ...]
    root: Path
    bad_files: tuple[BadFile, ...] = ()
    notes: tuple[str, ...] = ()
    """Plain sentences for the user: what was ignored, converted or unusual."""

    def file(self, row: int) -> Path:
        """The file of one record, absolute."""
        return self.root / self.items[row].path

    def labels(self) -> list[int]:
        """Class index of every row."""
        index = {name: number for number, name in enumerate(self.class_names)}
        return [index[record.label] for record in self.items]


def counted(number: int, one: str, several: str) -> str:
    """A number with the words that fit it: '1 file is', '3 files are'."""
    return f"{number} {one if number == 1 else several}"
