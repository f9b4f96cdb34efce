"""The input of the formats' writers: the model, its graph for inference, and training images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model.network import activate_in_graph
from keras_transfer.models.folding import fold
from keras_transfer.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Source:
    """A model with everything that the formats are written from.

    `images` are uint8 [N, S, S, C] of the training split, for the ranges of activations;
    `validation` are images of the run with their target values, for choices; `scratch` is a folder
    for files that several formats need. `run` is the run's folder. `say` is called with a
    sentence on what was chosen.
    """

    model: keras.Model
    contract: Contract
    images: np.ndarray
    scratch: Path
    validation: tuple[np.ndarray, np.ndarray]
    run: Path
    say: Callable[[str], None]

    @property
    def class_hash(self) -> str:
        return self.contract.class_hash

    @property
    def output_name(self) -> str:
        """Name of the output in formats with named outputs."""
        return self.contract.restored_task.output_name

    @cached_property
    def graph(self) -> Any:
        """The function of `inference_graph`."""
        return inference_graph(self.model, self.contract.restored_task)


def inference_graph(model: keras.Model, task: Task) -> Any:
    """The model as one concrete function of constants, in the form that converters support best.

    It maps uint8 [B, S, S, C] to activated outputs float32 [B, K], for any B. Batch normalisation
    is folded into convolutions, and each `Preprocess` becomes one 1 × 1 convolution: slices and
    concatenations of channels would take longer than this convolution.
    """
    folded = fold(model)
    scaling = [layer for layer in folded.layers if isinstance(layer, Preprocess)]
    network = keras.Model([layer.output for layer in scaling], folded.output)
    *_, size, channels = model.input.shape
    convolutions = [_as_convolution(layer, channels) for layer in scaling]

    def predict(pixels: tf.Tensor) -> tf.Tensor:
        images = tf.cast(pixels, tf.float32)
        scaled = [tf.nn.conv2d(images, kernel, 1, "VALID") + bias for kernel, bias in convolutions]
        logits = tf.cast(network(scaled, training=False), tf.float32)
        return tf.identity(activate_in_graph(logits, task.activation), name=task.output_name)

    signature = tf.TensorSpec([None, size, size, channels], tf.uint8, name="pixels")
    traced = tf.function(predict, autograph=False).get_concrete_function(signature)
    return convert_variables_to_constants_v2(traced)


def _as_convolution(preprocess: Preprocess, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [1, 1, C, P] and bias [P], both float32, with the effect of `Preprocess`."""
    corners = np.concatenate([np.zeros((1, channels)), 255 * np.eye(channels)]).astype(np.float32)
    scaled = keras.ops.convert_to_numpy(preprocess(corners[:, np.newaxis, np.newaxis]))
    bias = scaled[0, 0, 0].astype(np.float64)
    kernel = (scaled[1:, 0, 0] - bias) / 255
    return kernel[np.newaxis, np.newaxis].astype(np.float32), bias.astype(np.float32)
