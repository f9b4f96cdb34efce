"""Records: which images there are, what they show, and which split they belong to.

Paths, targets and hashes only; no pixels. A record is always a file: TFDS sources are unpacked
into files once, so that splits, predictions and mistakes can always name the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_transfer.data.targets import Targets


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled image.

    `path` is relative to `Records.root` where the file lies below it, absolute otherwise, always
    with forward slashes. `target` holds the texts of the source: the name of the class folder, or
    the cells of the label columns. `split` ('train', 'val' or 'test') and `group` are the source's
    own, None where it has none. `digest` is the SHA-256 of the file's bytes in hex, '' until the
    audit has read the file.
    """

    path: str
    target: tuple[str, ...]
    split: str | None = None
    group: str | None = None
    digest: str = ""

    @property
    def label(self) -> str:
        """The target as one text."""
        return ", ".join(self.target)

    @property
    def example_id(self) -> int:
        """A 63-bit number that depends on the image's content alone."""
        return int(self.digest[:16], 16) >> 1


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source lists: `items` in a fixed order, the folder `root`, and notes for the user."""

    items: Sequence[Record]
    root: Path
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Records:
    """All images of a source in a fixed order, with their targets row by row."""

    items: tuple[Record, ...]
    targets: Targets
    root: Path
    bad_files: tuple[BadFile, ...] = ()
    notes: tuple[str, ...] = ()
    """Plain sentences for the user: what was ignored, converted or unusual."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the outputs of a model of these images stand for."""
        return self.targets.names

    def file(self, row: int) -> Path:
        """The file of one record, absolute."""
        return self.root / self.items[row].path


def counted(number: int, one: str, several: str) -> str:
    """A number with the words that fit it: '1 file is', '3 files are'."""
    return f"{number} {one if number == 1 else several}"
