"""Gradients by inputs and variables, and compiled functions of tensors, which Keras has not."""

from collections.abc import Callable, Sequence
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


def variable_gradients(
    function: Callable[[], Any], variables: Sequence[keras.Variable]
) -> list[Any]:
    """The gradients of a scalar function of no arguments by variables that train."""
    if keras.backend.backend() == "jax":
        import jax

        def of(values: list[Any]) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function()

        gradients: list[Any] = jax.grad(of)([variable.value for variable in variables])
        return gradients
    import tensorflow as tf

    with tf.GradientTape() as tape:
        value = function()
    tensors = [variable.value for variable in variables]
    return list(tape.gradient(value, tensors, unconnected_gradients="zero"))


def separate_gradients(
    losses: Callable[[], Sequence[Any]], variables: Sequence[keras.Variable]
) -> list[list[Any]]:
    """Of each scalar loss its gradients by the variables, zeros where it does not depend on one.

    TensorFlow only: on JAX Keras computes losses and gradients in one function of its own.
    """
    import tensorflow as tf

    values = [variable.value for variable in variables]
    with tf.GradientTape(persistent=True) as tape:
        found = losses()
    return [tape.gradient(loss, values, unconnected_gradients="zero") for loss in found]


def shuffled(count: int, key: Any) -> Any:
    """The numbers below `count` in an order that depends on the key, int32 [2], alone."""
    import tensorflow as tf

    return tf.random.experimental.stateless_shuffle(tf.range(count), seed=key)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of tensors as a graph, for each shape of them.

    Variables that it reads have the values of the call on TensorFlow, of the first call on JAX.
    """
    if keras.backend.backend() == "jax":
        import jax

        traced: Callable[..., Any] = jax.jit(function)
        return traced
    import tensorflow as tf

    graph: Callable[..., Any] = tf.function(function, autograph=False, jit_compile=False)
    return graph
