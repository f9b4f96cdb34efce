"""Keras files: the whole model, with logits as outputs. Needs Keras and this package."""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from keras_transfer.export.formats.source import Source


def write(source: "Source", target: Path, *, precision: str) -> None:  # noqa: ARG001
    """Write the model as it was trained."""
    source.model.save(target)


def open_artefact(path: Path, *, num_threads: int | None = None) -> SimpleNamespace:
    """Open a .keras file; its outputs are logits. `num_threads` applies to the whole process."""
    import keras

    import keras_transfer.backbones.preprocess  # noqa: F401  registers the layer
    from keras_transfer.tasks.registry import register_layers

    register_layers()

    if num_threads is not None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    model = keras.models.load_model(path, compile=False)

    def predict(pixels: np.ndarray) -> np.ndarray:
        logits: np.ndarray = model.predict_on_batch(pixels.astype(np.float32))
        return logits

    return SimpleNamespace(predict=predict, class_hash=model.name.removeprefix("classifier_"))
