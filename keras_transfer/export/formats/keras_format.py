"""Keras files: the whole model, with logits as outputs. Needs Keras and this package."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from keras_transfer.export.formats.source import Source


@dataclass(frozen=True, eq=False)
class OpenedKeras:
    """`predict` maps uint8 [B, S, S, 3] to logits float32 [B, K]."""

    predict: Callable[[np.ndarray], np.ndarray]
    class_hash: str


def write(source: "Source", target: Path, *, precision: str) -> None:  # noqa: ARG001
    """Write the model as it was trained."""
    source.model.save(target)


def open_artefact(path: Path, *, num_threads: int | None = None) -> OpenedKeras:
    """Open a .keras file; TensorFlow's threads are those of the whole process."""
    import keras

    import keras_transfer.backbones.preprocess  # noqa: F401  registers the layer

    if num_threads is not None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    model = keras.models.load_model(path, compile=False)

    def predict(pixels: np.ndarray) -> np.ndarray:
        logits: np.ndarray = model.predict_on_batch(pixels.astype(np.float32))
        return logits

    return OpenedKeras(predict, model.name.removeprefix("classifier_"))
