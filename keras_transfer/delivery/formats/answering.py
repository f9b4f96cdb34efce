"""The network as one graph from pixels to probabilities, in the shape that converters like best."""

from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.models.folding import fold

INPUT: Final = "pixels"
OUTPUT: Final = "probabilities"


def answering(model: keras.Model) -> Any:
    """One concrete function of constants: uint8 [B, S, S, 3] to float32 [B, C], B open.

    Batch normalisation is folded into convolutions. `Preprocess` becomes one convolution of 1 × 1:
    that is all it does to a pixel, and slices and concatenations of channels cost more than
    their arithmetic.
    """
    folded = fold(model)
    preprocess = next(layer for layer in folded.layers if isinstance(layer, Preprocess))
    network = keras.Model(preprocess.output, folded.output)
    kernel, bias = _affine(preprocess)
    size = model.input.shape[1]

    def answer(pixels: tf.Tensor) -> tf.Tensor:
        scaled = tf.nn.conv2d(tf.cast(pixels, tf.float32), kernel, 1, "VALID") + bias
        logits = tf.cast(network(scaled, training=False), tf.float32)
        return tf.identity(tf.nn.softmax(logits), name=OUTPUT)

    signature = tf.TensorSpec([None, size, size, 3], tf.uint8, name=INPUT)
    traced = tf.function(answer, autograph=False).get_concrete_function(signature)
    return convert_variables_to_constants_v2(traced)


def _affine(preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """What it does to a pixel, as x @ kernel + bias: float32 [1, 1, 3, 3] and [3]."""
    corners = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3)]).astype(np.float32)
    shown = keras.ops.convert_to_numpy(preprocess(corners.reshape(4, 1, 1, 3))).reshape(4, 3)
    bias = shown[0].astype(np.float64)
    kernel = (shown[1:] - bias) / 255
    return kernel.reshape(1, 1, 3, 3).astype(np.float32), bias.astype(np.float32)
