"""Memory: use of memory by a process, out-of-memory errors, and old graphs kept by TensorFlow."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from keras_transfer.errors import OutOfMemoryError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, TensorFlow or JAX report with this error that memory ran out."""
    import tensorflow as tf

    kinds = MemoryError, OutOfMemoryError, tf.errors.ResourceExhaustedError
    if isinstance(error, kinds):
        return True
    # Compared by name: JAX may not be installed, and its versions use both names.
    is_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return is_jax and "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def forgetting_graphs() -> Iterator[None]:
    """Free the training graphs that were traced inside the block, and their variables.

    Every traced optimizer step registers a gradient in a table of TensorFlow, which keeps its graph
    until the process ends: 50 MB for each training of a ResNet50 cut after stage3. The table is
    private; if a later version changes it, memory grows and nothing else changes.

    Under JAX, TensorFlow's default graph keeps the functions of `tf.data` pipelines, together with
    the features they read.
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
        if (
            keras.backend.backend() != "tensorflow"
        ):  # Under TensorFlow `keras.utils.clear_session` does it.
            tf.compat.v1.reset_default_graph()


def peak_mb() -> float:
    """The largest resident memory this process has had so far, in 10^6 bytes.

    This counts Python, TensorFlow and its arrays, and the parts of mapped files in memory, but no
    memory of accelerators.
    """
    # Not `getrusage`: on Linux a subprocess inherits the peak of its parent.
    if fields := _status():
        return _megabytes(fields["VmHWM"])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def resident_mb() -> float:
    """The resident memory of this process now, in 10^6 bytes (its peak where there is no /proc)."""
    fields = _status()
    return _megabytes(fields["VmRSS"]) if fields else peak_mb()


def _status() -> dict[str, str]:
    """The fields of /proc/self/status; empty on systems without it."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return {}
    return dict(line.split(":", 1) for line in status.read_text().splitlines())


def _megabytes(text: str) -> float:
    return int(text.split()[0]) * 1024 / 1e6
