"""Graphs: frozen networks as compiled functions of images."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_transfer.devices.strategy import current

if TYPE_CHECKING:
    import jax

Frozen = Callable[[np.ndarray], list[np.ndarray]]
"""Maps uint8 [B, …] to one float32 [B, …] for every output of a network."""


def compile_frozen(model: keras.Model) -> Frozen:
    """Compile a network that does not change any more, for batches of any size.

    Images are sent to the device as bytes and converted to floats there. TensorFlow gets the
    weights as constants, which its kernels arrange in memory once; JAX keeps them on the devices of
    this host, which share a batch if it divides equally.
    """
    return _for_jax(model) if keras.backend.backend() == "jax" else _for_tensorflow(model)


def _for_tensorflow(model: keras.Model) -> Frozen:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    def forward(pixels: tf.Tensor) -> list[tf.Tensor]:
        outputs = model(tf.cast(pixels, tf.float32), training=False)
        return [tf.cast(output, tf.float32) for output in keras.tree.flatten(outputs)]

    traced = tf.function(forward, autograph=False, jit_compile=False)
    signature = tf.TensorSpec(model.input.shape, tf.uint8)
    run = convert_variables_to_constants_v2(traced.get_concrete_function(signature))
    return lambda pixels: [output.numpy() for output in run(tf.constant(pixels))]


def trace_once(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """A model's outputs float32 of pixels [B, S, S, 3], traced once for batches of any size.

    `keras.Model.predict_on_batch` is traced twice for each model, and TensorFlow warns after five
    times, as of a few runs in one notebook. Later changes of the weights count. On JAX it is
    `predict_on_batch`, which compiles a program for each size.
    """
    if keras.backend.backend() == "jax":
        return lambda pixels: np.asarray(model.predict_on_batch(pixels))
    import tensorflow as tf

    traced = tf.function(lambda pixels: model(pixels, training=False), autograph=False)
    run = traced.get_concrete_function(tf.TensorSpec(model.input_shape, tf.float32))
    return lambda pixels: np.asarray(run(tf.constant(pixels, tf.float32)))


def _for_jax(model: keras.Model) -> Frozen:
    import jax

    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]

    @jax.jit
    def forward(weights: Any, pixels: jax.Array) -> list[jax.Array]:
        outputs, _ = model.stateless_call(
            *weights, keras.ops.cast(pixels, "float32"), training=False
        )
        return [keras.ops.cast(output, "float32") for output in keras.tree.flatten(outputs)]

    whole, shared = _local_shardings()
    weights = jax.device_put((trainable, others), whole)

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        divides = len(pixels) % whole.mesh.size == 0
        batch = jax.device_put(pixels, shared if divides else whole)
        return [np.asarray(output) for output in forward(weights, batch)]

    return run


def _local_shardings() -> "tuple[jax.sharding.NamedSharding, jax.sharding.NamedSharding]":
    """Shardings for values copied to every device of this host, and for batches they share."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    devices = jax.local_devices() if current().num_devices > 1 else jax.local_devices()[:1]
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products with full precision inside the block.

    By default GPUs round the factors to ten bits and TPUs to seven. The probabilities of an
    exported model must agree with those of its model to five digits on any device.
    """
    import tensorflow as tf

    setting = tf.config.experimental
    before = setting.tensor_float_32_execution_enabled()
    setting.enable_tensor_float_32_execution(False)
    try:
        with _full_float32_on_jax():
            yield
    finally:
        setting.enable_tensor_float_32_execution(before)


def _full_float32_on_jax() -> contextlib.AbstractContextManager[None]:
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    # JAX compiles a function again if the setting has changed.
    return jax.default_matmul_precision("float32")
