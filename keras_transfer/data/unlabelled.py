"""Images without labels: all image files below a folder, for methods that can learn from them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from keras_transfer.data.folder_listing import FolderListing
from keras_transfer.data.records import Record, Records, counted
from keras_transfer.data.targets import Targets
from keras_transfer.errors import DataError

_KEY: Final = "unlabelled"


def list_unlabelled(folder: str, targets: Targets, *, where: str = "data.unlabelled") -> Records:
    """The images below a folder, in the order of their paths; `where` names it in errors.

    Their targets are placeholders: the value of the first of the labelled `targets`, in no stratum.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    root = Path(folder).expanduser()
    listing = FolderListing(root)
    paths = _paths(listing) if root.is_dir() else []
    if not paths:
        raise DataError(
            f"{where} has no images: {root}",
            expected="a folder with image files, at any depth",
            received="; ".join(listing.ignored.notes()) or "an empty folder"
            if root.is_dir()
            else "no such folder",
            fix="correct the path",
        )
    items = tuple(Record(path=str((root / path).absolute()), target=()) for path in paths)
    return Records(items, placeholders(targets, len(items)), root.absolute())


def _paths(listing: FolderListing) -> list[str]:
    below = [path for folder in listing.folders() for path in listing.images(folder)]
    return sorted([*listing.files(), *below])


def placeholders(targets: Targets, num_images: int) -> Targets:
    """Targets of images without labels; see `list_unlabelled`."""
    taken = targets.take(np.zeros(num_images, np.int64))
    return replace(taken, strata=np.zeros_like(taken.strata))


def keep_unseen(records: Records, evaluated: Collection[str]) -> tuple[tuple[Record, ...], str]:
    """The images that are not copies of evaluated ones, each once, and a sentence on the others.

    Args:
        records: with digests.
        evaluated: digests of the validation and test splits.
    """
    once = {record.digest: record for record in reversed(records.items)}
    kept = tuple(
        record
        for record in records.items
        if once[record.digest] is record and record.digest not in evaluated
    )
    num_evaluated = sum(record.digest in evaluated for record in records.items)
    num_copies = len(records.items) - len(kept) - num_evaluated
    images = counted(len(kept), "image without a label is", "images without labels are")
    return kept, (
        f"{images} used; left out are {num_evaluated:,} that are in the validation or test split, "
        f"{num_copies:,} copies of others and {len(records.bad_files):,} that cannot be read."
    )


def list_digests(items: Sequence[Record]) -> dict[str, list[str]]:
    """The part of splits.json on images without labels, empty if there are none."""
    return {_KEY: [item.digest for item in items]} if items else {}


def check_same_unlabelled(items: Sequence[Record], document: Mapping[str, Any]) -> None:
    """Raise DataError unless the images are those in the splits.json of a run."""
    before, now = document.get(_KEY, []), [item.digest for item in items]
    if before != now:
        raise DataError(
            "the images without labels have changed since the run was started",
            expected=f"the {len(before):,} images whose digests are in splits.json",
            received=f"{len(now):,} images, {len(set(now) - set(before)):,} of them new",
            fix="restore the folder in data.unlabelled, or start a new run",
        )
