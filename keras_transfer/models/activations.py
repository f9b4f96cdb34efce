"""Activations: from logits to the outputs of a task."""

from typing import Literal

import numpy as np

Kind = Literal["softmax", "sigmoid", "linear"]

Activation = Kind | tuple[tuple[Kind, int], ...]
"""One activation of all columns, or those of ranges of columns in order, with their widths."""


def ranges(activation: Activation, num_columns: int) -> list[tuple[Kind, slice]]:
    """Each activation with its columns; one of all columns is a single range."""
    if isinstance(activation, str):
        return [(activation, slice(0, num_columns))]
    found, start = [], 0
    for kind, width in activation:
        found.append((kind, slice(start, start + width)))
        start += width
    return found


def range_of(activation: Activation, column: int, num_columns: int) -> tuple[Kind, slice]:
    """The range that a column belongs to."""
    return next(each for each in ranges(activation, num_columns) if column < each[1].stop)


def activate(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """Outputs float32 of logits [..., K].

    'softmax' gives class probabilities along the last axis, 'sigmoid' one probability a column,
    and 'linear' the logits themselves.
    """
    if not isinstance(activation, str):
        parts = ranges(activation, logits.shape[-1])
        return np.concatenate([activate(logits[..., own], kind) for kind, own in parts], axis=-1)
    if activation == "linear":
        return logits.astype(np.float32, copy=False)
    if activation == "sigmoid":
        # exp of a negative number only: large logits must not overflow.
        small = np.exp(-np.abs(logits), dtype=np.float32)
        return np.where(logits >= 0, 1, small) / (1 + small)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float32)
    result: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return result
