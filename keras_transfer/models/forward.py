"""Forward passes of a classifier over many images, in batches and in full float32 precision."""

from collections.abc import Callable
from typing import Final

import keras
import numpy as np

from keras_transfer.data.datasets import Pixels
from keras_transfer.devices.graphs import full_float32
from keras_transfer.models.activations import Activation, activate

BATCH_SIZE: Final = 32
Run = Callable[[np.ndarray], np.ndarray]
"""Maps float32 [B, S, S, 3] to a model's outputs."""


def predict_pixels(
    model: keras.Model,
    pixels: Pixels,
    *,
    activation: Activation,
    rows: np.ndarray | None = None,
    batch_size: int = BATCH_SIZE,
    on_progress: Callable[[int, int], None] | None = None,
    run: Run | None = None,
) -> np.ndarray:
    """The classifier's activated outputs, float32 [N, K]; arguments as for `forward_pixels`."""
    logits = forward_pixels(
        model, pixels, rows=rows, batch_size=batch_size, on_progress=on_progress, run=run
    )
    return activate(logits, activation) if len(logits) else logits


def forward_pixels(
    model: keras.Model,
    pixels: Pixels,
    *,
    rows: np.ndarray | None = None,
    batch_size: int = BATCH_SIZE,
    on_progress: Callable[[int, int], None] | None = None,
    run: Run | None = None,
) -> np.ndarray:
    """The model's outputs, float32 [N, …], in full float32 precision on every device.

    Args:
        pixels: uint8 [M, S, S, C], in memory or mapped from a file; read batch by batch.
        rows: indices of N of the M images, in order; None means all.
        on_progress: called with the number of images done and N.
        run: computes a batch; by default the model's `predict_on_batch`.
    """
    run = run or model.predict_on_batch
    rows = np.arange(len(pixels)) if rows is None else rows
    outputs = np.empty((len(rows), *model.output_shape[1:]), np.float32)
    full = batch_size if batch_size < len(rows) else filled_size(len(rows))
    with full_float32():
        for start in range(0, len(rows), batch_size):
            batch = pixels[rows[start : start + batch_size]].astype(np.float32)
            size = len(batch)
            if size < full:
                # Filled, because tracing another shape takes longer than running it.
                batch = np.resize(batch, (full, *batch.shape[1:]))
            outputs[start : start + size] = run(batch)[:size]
            if on_progress is not None:
                on_progress(start + size, len(rows))
    return outputs


def filled_size(size: int) -> int:
    """The size to which a single batch of `size` images is filled.

    XLA compiles a program for each size: on the JAX backend only powers of two are used.
    """
    return 1 << (size - 1).bit_length() if size and keras.backend.backend() == "jax" else size
