"""Delivery: from a trained model to a folder that can be served, copied and handed on.

Numbered versions of an export: which there are, and which number comes next.
"""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_transfer.export.bundle.deployment import write_bundle
from keras_transfer.export.card import Card
from keras_transfer.export.saved_model.proof import Proof, export_proven
from keras_transfer.specs import RunSpec


def deliver(
    model: keras.Model,
    version_folder: Path,
    *,
    spec: RunSpec,
    card: Card,
    files: Sequence[Path],
    probabilities: np.ndarray,
) -> Proof:
    """Export with proof, and write what servers need beside the numbered version.

    Args:
        version_folder: such as export/2; its parent gets configuration, clients and card.
        files: the test split's.
        probabilities: float32 [N, C], the model's, row by row for `files`.

    Raises:
        ExportError: the artefact cannot be served by TensorFlow alone, or does not agree.
        RunError: the disk is full, or the folder cannot be written.
    """
    proof = export_proven(
        model,
        version_folder,
        spec=spec,
        class_names=card.class_names,
        files=files,
        probabilities=probabilities,
        card=card,
    )
    write_bundle(version_folder, proof)
    return proof


def version_folders(folder: Path) -> dict[int, Path]:
    """The versions in a folder by number; whatever is no plain number is none."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        # 'isdecimal' accepts other alphabets' digits, and '007' would be a second name for '7'.
        if path.name.isascii() and path.name.isdecimal() and str(int(path.name)) == path.name:
            found[int(path.name)] = path
    return found


def next_version(export_folder: Path) -> Path:
    """The folder of the next version: one more than the highest that is there."""
    return export_folder / str(max(version_folders(export_folder), default=0) + 1)
