"""A classifier as two graph functions, trunk and head, as trained or folded and frozen.

With two, the trunk runs once per image, and a heat map needs only the head's gradient with
respect to the trunk's features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from keras_transfer.models.activations import Activation, ranges
from keras_transfer.models.folding import fold

POOLING: Final = "pooling"
"""Name of the classifier's lowest layer above the trunk."""


@dataclass(frozen=True, eq=False)
class Network:
    """A classifier in two graph functions, the gradient of one, and the variables they read.

    `trunk` maps float32 [B, S, S, C] in 0-255 to features [B, h, w, K], `head` those to float32
    logits [B, C]. `gradient` maps features and weights of the logits, float32 [B, C], to the
    gradient of their weighted sum, float32 [B, h, w, K].
    """

    trunk: Callable[[tf.Tensor], tf.Tensor]
    head: Callable[[tf.Tensor], tf.Tensor]
    gradient: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    variables: list[tf.Variable]

    def logits(self, pixels: tf.Tensor) -> tf.Tensor:
        """Float32 logits [B, C] of pixels [B, S, S, C] of any numeric type, 0-255."""
        return self.head(self.trunk(tf.cast(pixels, tf.float32)))


def gradient_of(head: Callable[[tf.Tensor], tf.Tensor]) -> Callable[..., tf.Tensor]:
    """The `gradient` of a network whose head consists of TensorFlow operations."""

    def gradient(features: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(features)
            logits = head(features)
        return tape.gradient(logits, features, output_gradients=weights)

    return gradient


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

    CPU kernels arrange constants in memory once, but variables at every call. Dropout and other
    random layers are removed. The trunk computes in `precision`, the small head in float32 and with
    variables, because heat maps need its gradient.

    On Keras's JAX backend all weights stay in variables: XLA compiles a program for each batch
    size, and each of them would contain a copy of the constants.
    """
    trunk, head = _halves(model)
    trunk, head = fold(trunk, dtype=precision), fold(head)
    if _on_jax():
        return _compiled(trunk, head)

    def run(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(trunk(pixels, training=False), tf.float32)

    def logits(features: tf.Tensor) -> tf.Tensor:
        return head(features, training=False)

    signature = tf.TensorSpec([None, *model.input.shape[1:]], tf.float32)
    traced = tf.function(run, autograph=False).get_concrete_function(signature)
    constants = convert_variables_to_constants_v2(traced)
    return Network(
        lambda pixels: constants(pixels)[0],
        logits,
        gradient_of(logits),
        [weight.value for weight in head.weights],
    )


def grad_cam(
    network: Network, features: tf.Tensor, logits: tf.Tensor, class_index: tf.Tensor
) -> tf.Tensor:
    """Signed Grad-CAM map of one logit.

    The importance of channel k is the mean over positions of d logit / d feature k; the map is the
    sum of the channels times their importance. For average pooling and one dense layer that is the
    class activation map divided by h · w. Source: Selvaraju et al., arXiv:1610.02391, where
    negative values are cut off; `heat_map` does so.

    Args:
        features: float32 [B, h, w, K].
        logits: float32 [B, C], the head's output for them. Passed in, so that the head runs once:
            XLA on CPUs crashed sometimes when a program started twice at the same time.
        class_index: int32 [B], columns of the logits; -1 is the highest logit.

    Returns:
        float32 [B, h, w].
    """
    best = tf.argmax(logits, axis=-1, output_type=tf.int32)
    chosen = tf.one_hot(tf.where(class_index < 0, best, class_index), logits.shape[-1])
    importance = tf.reduce_mean(network.gradient(features, chosen), axis=(1, 2))
    return tf.einsum("bhwk,bk->bhw", features, importance)


def heat_map(signed: tf.Tensor) -> tf.Tensor:
    """The positive part of maps [B, h, w], divided by its maximum; zeros where there is none."""
    positive = tf.nn.relu(signed)
    return tf.math.divide_no_nan(positive, tf.reduce_max(positive, axis=(1, 2), keepdims=True))


def _halves(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    features = model.get_layer(POOLING).input
    return keras.Model(model.input, features), keras.Model(features, model.output)


def _on_jax() -> bool:
    return bool(keras.backend.backend() == "jax")


def _compiled(trunk: keras.Model, head: keras.Model) -> Network:
    # Imported only where Keras runs on it: JAX is an extra.
    from keras_transfer.export.saved_model.jax_network import compiled

    return Network(*compiled(trunk, head))


def activate_in_graph(logits: tf.Tensor, activation: Activation) -> tf.Tensor:
    """Outputs of logits [B, K], in TensorFlow operations; as `models.activations.activate`."""
    by_name = {"softmax": tf.nn.softmax, "sigmoid": tf.nn.sigmoid, "linear": tf.identity}
    if isinstance(activation, str):
        return by_name[activation](logits)
    parts = ranges(activation, logits.shape[-1])
    return tf.concat([by_name[kind](logits[:, own]) for kind, own in parts], axis=-1)
