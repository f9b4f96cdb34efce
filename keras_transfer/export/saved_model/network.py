"""The network as graph functions, in the ways it can be served.

Whatever is served is a trunk and a head: the trunk runs once an image, and a heat map needs no
more than the head's gradient on what the trunk made of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True, eq=False)
class Network:
    """A classifier in two graph functions, the gradient of one, and the variables they read.

    `trunk` maps float32 [B, S, S, 3] in 0-255 to features [B, h, w, K], `head` those to float32
    logits [B, C]. `gradient` maps features and weights of the logits, float32 [B, C], to the
    gradient of their weighted sum, float32 [B, h, w, K].
    """

    trunk: Callable[[tf.Tensor], tf.Tensor]
    head: Callable[[tf.Tensor], tf.Tensor]
    gradient: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    variables: list[tf.Variable]

    def logits(self, pixels: tf.Tensor) -> tf.Tensor:
        """Float32 logits [B, C] of pixels [B, S, S, 3] of any numeric type, 0-255."""
        return self.head(self.trunk(tf.cast(pixels, tf.float32)))


def gradient_of(head: Callable[[tf.Tensor], tf.Tensor]) -> Callable[..., tf.Tensor]:
    """The `gradient` of a network whose head is made of TensorFlow's operations."""

    def gradient(features: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(features)
            logits = head(features)
        return tape.gradient(logits, features, output_gradients=weights)

    return gradient


def grad_cam(
    network: Network, features: tf.Tensor, logits: tf.Tensor, class_index: tf.Tensor
) -> tf.Tensor:
    """Where a class is seen: Grad-CAM, signed, of logits.

    The mean over places of d logit / d feature k is channel k's importance; the map is the sum of
    the channels times their importance. For average pooling and one dense layer that is the
    class activation map divided by h · w. Source: Selvaraju et al., arXiv:1610.02391, where
    negative values are cut off; what is shown does so, see `heat_map`.

    Args:
        features: float32 [B, h, w, K].
        logits: float32 [B, C], what the head makes of them. Given, so that it runs once: XLA on
            processors crashed now and then where a program began twice at the same time.
        class_index: int32 [B], columns of the logits; -1 is the most probable class.

    Returns:
        float32 [B, h, w].
    """
    best = tf.argmax(logits, axis=-1, output_type=tf.int32)
    chosen = tf.one_hot(tf.where(class_index < 0, best, class_index), logits.shape[-1])
    importance = tf.reduce_mean(network.gradient(features, chosen), axis=(1, 2))
    return tf.einsum("bhwk,bk->bhw", features, importance)


def heat_map(signed: tf.Tensor) -> tf.Tensor:
    """A signed map in 0-1: what speaks for the class, by its highest value; else zeros, not NaN."""
    positive = tf.nn.relu(signed)
    return tf.math.divide_no_nan(positive, tf.reduce_max(positive, axis=(1, 2), keepdims=True))
