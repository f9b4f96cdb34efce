"""Gradients by inputs, which Keras has no function for."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def input_gradient(function: Callable[[Any], Any], inputs: Any) -> Any:
    """The gradient of the sum of `function` by its inputs, also inside a training step."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(lambda values: ops.sum(function(values)))(inputs)
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        total = ops.sum(function(inputs))
    return tape.gradient(total, inputs)
