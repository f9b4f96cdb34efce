"""Builds the network that is exported: with the model's own layers, or folded and frozen."""

from typing import Final

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from keras_transfer.export.saved_model.network import Network, gradient_of
from keras_transfer.models.folding import fold

POOLING: Final = "pooling"
"""Name of the classifier's lowest layer above the trunk."""


def as_trained(model: keras.Model) -> Network:
    """The model's own layers, their weights in variables."""
    trunk, head = _halves(model)
    if _on_jax():
        return _compiled(trunk, head)

    def logits(features: tf.Tensor) -> tf.Tensor:
        return tf.cast(head(features, training=False), tf.float32)

    return Network(
        lambda pixels: trunk(pixels, training=False),
        logits,
        gradient_of(logits),
        [weight.value for weight in model.weights],
    )


def frozen(model: keras.Model, *, precision: str) -> Network:
    """A copy for serving: batch normalisation folded into convolutions, weights constants.

    Constants are laid out by the processor's kernels once, variables at every call. Dropout and
    other random layers are gone. The trunk computes in `precision`, the small head in float32 and
    with variables, since heat maps need its gradient.

    On Keras's JAX backend all weights stay in variables: XLA compiles a program for each batch
    size, and each of them would hold constants of its own.
    """
    trunk, head = _halves(model)
    trunk, head = fold(trunk, dtype=precision), fold(head)
    if _on_jax():
        return _compiled(trunk, head)
    size = model.input.shape[1]

    def run(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(trunk(pixels, training=False), tf.float32)

    def logits(features: tf.Tensor) -> tf.Tensor:
        return head(features, training=False)

    signature = tf.TensorSpec([None, size, size, 3], tf.float32)
    traced = tf.function(run, autograph=False).get_concrete_function(signature)
    constants = convert_variables_to_constants_v2(traced)
    return Network(
        lambda pixels: constants(pixels)[0],
        logits,
        gradient_of(logits),
        [weight.value for weight in head.weights],
    )


def _halves(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    features = model.get_layer(POOLING).input
    return keras.Model(model.input, features), keras.Model(features, model.output)


def _on_jax() -> bool:
    return bool(keras.backend.backend() == "jax")


def _compiled(trunk: keras.Model, head: keras.Model) -> Network:
    # Imported only where Keras runs on it: JAX is an extra.
    from keras_transfer.export.saved_model.jax_network import compiled

    return compiled(trunk, head)
