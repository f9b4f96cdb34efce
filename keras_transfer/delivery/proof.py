"""Export with proof: the artefact appears only once it has answered like the model."""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_transfer.delivery.atomic import replacing
from keras_transfer.delivery.export import export_saved_model
from keras_transfer.delivery.parity import TOLERANCES, Parity, check_parity
from keras_transfer.specs import RunSpec

MAX_FILES = 256
"""Test pictures on which artefact and model are compared, spread evenly; more prove no more."""


def export_proven(
    model: keras.Model,
    folder: Path,
    *,
    spec: RunSpec,
    class_names: Sequence[str],
    files: Sequence[Path],
    probabilities: np.ndarray,
) -> Parity:
    """Write the SavedModel, compare it with the model on test files, and only then let it appear.

    Args:
        files: the test split's.
        probabilities: float32 [N, C], the model's, row by row for `files`.

    Raises:
        ExportError: the artefact cannot be served by TensorFlow alone, or does not agree.
        RunError: the disk is full, or the folder cannot be written.
    """
    last = len(files) - 1
    chosen = np.unique(np.linspace(0, last, min(MAX_FILES, len(files))).round().astype(int))
    with replacing(folder) as path:
        export_saved_model(
            model,
            path,
            class_names=class_names,
            image_size=spec.data.image_size,
            resize=spec.data.resize,
        )
        return check_parity(
            path,
            [files[row] for row in chosen],
            probabilities[chosen],
            class_names,
            max_megapixels=spec.data.max_megapixels,
            tolerance=TOLERANCES[spec.devices.precision],
        )
