"""Records: the images of a source with their targets and splits.

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

    `path` is relative to `Records.root` where the file is below it, else absolute; it always has
    forward slashes. `target` has the texts of the source: the name of the class folder, or the
    cells of the label columns. `split` ('train', 'val' or 'test') and `group` come from the
    source, None where it has none. `digest` is the SHA-256 of the file's bytes in hex, '' until
    the audit has read the file.
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
    """The content of a source: `items` in a fixed order, the folder `root`, notes for the user."""

    items: Sequence[Record]
    root: Path
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that was left out, and why.

    Among predictions it has their attributes, without a label.
    """

    path: str
    """The file."""
    reason: str
    """What is wrong with it, such as 'no such file'."""

    @property
    def labels(self) -> tuple[str, ...]:
        """No label."""
        return ()

    @property
    def label(self) -> str:
        """The empty text."""
        return ""

    @property
    def confidence(self) -> float:
        """Not a number."""
        return float("nan")


@dataclass(frozen=True)
class Records:
    """All images of a source in a fixed order; row i of `targets` belongs to item i."""

    items: tuple[Record, ...]
    targets: Targets
    root: Path
    bad_files: tuple[BadFile, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences for the user: what was ignored, converted or unusual."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of a model's outputs, in their order."""
        return self.targets.names

    def file(self, row: int) -> Path:
        """The file of one record, absolute."""
        return self.root / self.items[row].path


def counted(number: int, one: str, several: str) -> str:
    """A number with the singular or plural: '1 file is', '3 files are'."""
    return f"{number} {one if number == 1 else several}"
