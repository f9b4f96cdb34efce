"""Seeds, precision and a quiet TensorFlow: what is set once, before anything is built."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from keras_transfer.specs import DeviceSpec


def set_up(spec: DeviceSpec, *, seed: int) -> None:
    """Set Keras's seed and dtype policy.

    Call it before a model is built. `keras.utils.clear_session()` would undo the policy.
    TensorFlow's own switch for determinism is left off: on a CPU runs repeat bit by bit without
    it, and with it `tf.data` maps nothing in parallel.
    """
    import keras

    keras.config.set_dtype_policy(spec.precision)
    keras.utils.set_random_seed(seed)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how Python, TensorFlow or JAX say that memory ran out."""
    import tensorflow as tf

    if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
        return True
    return type(error).__name__ == "XlaRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def forgetting_graphs() -> Iterator[None]:
    """Let go of the training graphs that were traced inside, and of their variables with them.

    Every traced optimizer step registers a gradient in a table of TensorFlow's that keeps its
    graph for good: 50 MB for each training of a ResNet50 cut after stage3. The table is private;
    where a later version has another, memory grows and nothing else changes.
    """
    from tensorflow.python.framework import ops

    table = getattr(ops.gradient_registry, "_registry", {})
    before = set(table)
    try:
        yield
    finally:
        for name in set(table) - before:
            if name.startswith("CustomGradient-"):
                del table[name]


@contextlib.contextmanager
def chatter_to(log: Path) -> Iterator[None]:
    """Send what native code and loggers say to a file, and keep the terminal for people.

    TensorFlow's C++ part writes to file descriptor 2 itself, so the descriptor is redirected;
    Python's `sys.stderr` goes on to the terminal. Must be entered before TensorFlow is imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    terminal = os.dup(2)
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, saved_stderr = logging.getLogger(), sys.stderr
    with log.open("ab") as file, os.fdopen(terminal, "w", buffering=1) as screen:
        os.dup2(file.fileno(), 2)
        sys.stderr = screen
        root.addHandler(handler)
        logging.captureWarnings(True)
        warnings.simplefilter("default")
        try:
            yield
        finally:
            logging.captureWarnings(False)
            root.removeHandler(handler)
            handler.close()
            sys.stderr = saved_stderr
            os.dup2(terminal, 2)
