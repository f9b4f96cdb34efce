"""Activations: from logits to the outputs of a task."""

from typing import Literal

import numpy as np

Activation = Literal["softmax", "sigmoid", "linear"]


def activate(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """Outputs float32 of logits [..., K].

    'softmax' gives class probabilities along the last axis, 'sigmoid' one probability a column,
    and 'linear' the logits themselves.
    """
    if activation == "linear":
        return logits.astype(np.float32, copy=False)
    if activation == "sigmoid":
        # exp of a negative number only: large logits must not overflow.
        small = np.exp(-np.abs(logits), dtype=np.float32)
        return np.where(logits >= 0, 1, small) / (1 + small)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float32)
    result: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return result
