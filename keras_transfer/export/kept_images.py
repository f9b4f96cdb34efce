"""Copies of images in a run folder, from which it is exported again where its data are not.

images/test/<SHA-256>.png     as many as an export is compared on
images/train/<SHA-256>.png    those from which int8 formats take the ranges of activations
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from keras_transfer.data.listed_images import find_listed
from keras_transfer.data.records import Record, Records
from keras_transfer.data.splits import Splits
from keras_transfer.errors import DataError
from keras_transfer.export.saved_model.proof import MAX_FILES
from keras_transfer.inference.prediction import LoadedRun
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import DataSpec
from keras_transfer.storage.run_folder import RunFolder

NUM_RANGES: Final = 64
"""Training images from which int8 formats take the ranges of activations."""

_IMAGES: Final = "images"


def keep_images(run: RunFolder, records: Records, splits: Splits) -> None:
    """Copy some test and training images, spread evenly over their splits, into the run folder.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    with run.replacing(_IMAGES) as folder:
        for name, limit in (("test", MAX_FILES), ("train", NUM_RANGES)):
            rows = getattr(splits, name)
            (folder / name).mkdir(parents=True)
            for position in spread(len(rows), limit):
                file, digest = records.file(rows[position]), records.items[rows[position]].digest
                shutil.copyfile(file, folder / name / f"{digest}{file.suffix}")


def find_or_kept(
    listed: Sequence[Record], run: LoadedRun, *, split: str, all_needed: bool, reporter: Reporter
) -> tuple[tuple[Record, ...], Path]:
    """As `find_listed`; where images are missing, those of them that the run keeps.

    Args:
        run: one that is moved has a place that was given, where all images must be.
        split: 'test' or 'train', of which all `listed` are.
        all_needed: whether kept images are of no use if there are not all of them.

    Raises:
        DataError: the images are missing, and the run does not keep them.
    """
    try:
        return find_listed(listed, run.spec.data, reporter=reporter)
    except DataError as error:
        folder = run.folder.path / _IMAGES / split
        files = {file.stem: file.name for file in folder.iterdir()} if folder.is_dir() else {}
        kept = [
            dataclasses.replace(record, path=files[record.digest])
            for record in listed
            if record.digest in files
        ]
        if run.is_moved or not kept or (all_needed and len(kept) < len(listed)):
            raise
        reporter.info(
            f"{error.what} ({error.received}): the {len(kept)} {split} images that the run keeps "
            "are used."
        )
        return find_listed(kept, DataSpec(path=str(folder)), reporter=reporter)


def spread(number: int, limit: int) -> list[int]:
    """At most `limit` of the positions 0 … number - 1, spread evenly."""
    positions = np.linspace(0, number - 1, min(limit, number)).round().astype(int)
    return [int(position) for position in positions]
