"""Memory of devices: how running out of it is told, and what TensorFlow keeps of old graphs."""

import contextlib
from collections.abc import Iterator

from keras_transfer.errors import OutOfMemoryError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how Python, TensorFlow or JAX say that memory ran out."""
    import tensorflow as tf

    kinds = MemoryError, OutOfMemoryError, tf.errors.ResourceExhaustedError
    if isinstance(error, kinds):
        return True
    # By name: JAX need not be installed, and has called its errors by both names.
    is_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return is_jax and "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def forgetting_graphs() -> Iterator[None]:
    """Let go of the training graphs that were traced inside, and of their variables with them.

    Every traced optimizer step registers a gradient in a table of TensorFlow's that keeps its
    graph for good: 50 MB for each training of a ResNet50 cut after stage3. The table is private;
    where a later version has another, memory grows and nothing else changes.

    Under JAX it is the functions by which `tf.data` reads: TensorFlow's default graph keeps them,
    and with them the features they read.
    """
    import keras
    import tensorflow as tf
    from tensorflow.python.framework import ops

    table = getattr(ops.gradient_registry, "_registry", {})
    before = set(table)
    try:
        yield
    finally:
        for name in set(table) - before:
            if name.startswith("CustomGradient-"):
                del table[name]
        if keras.backend.backend() != "tensorflow":  # There `keras.utils.clear_session` does it.
            tf.compat.v1.reset_default_graph()
