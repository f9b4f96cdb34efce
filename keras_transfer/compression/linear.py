"""The linear part of convolutions and dense layers, as a matrix on patches of what they read."""

from typing import Any, Final

import keras
import numpy as np
from keras import ops

from keras_transfer.compression.network import Computed

MOST_VALUES: Final = 30_000_000
"""Values of the patches on which a layer is fitted: as many positions as these allow."""
MOST_POSITIONS: Final = 20_000
RIDGE: Final = 1e-2
"""Penalty on changes of the weights, relative to the mean variance of the inputs."""


def weights_of(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The kernel as a matrix [inputs, outputs], and the bias [outputs], zeros without one."""
    kernel = ops.convert_to_numpy(layer.kernel)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    bias = ops.convert_to_numpy(layer.bias) if layer.use_bias else np.zeros(matrix.shape[1])
    return matrix, bias.astype(matrix.dtype)


def sample_positions(layer: Any, computed: Computed, generator: np.random.Generator) -> np.ndarray:
    """Random different positions of a layer's output: int [P], counted over all images."""
    step = computed.step
    num_images = int(computed.read[0].shape[0])
    total = num_images * int(np.prod(step.makes[0].shape[1:-1], dtype=int))
    wanted = MOST_VALUES // int(np.prod(layer.kernel.shape[:-1]))
    return generator.permutation(total)[: min(wanted, MOST_POSITIONS)]


def patches(layer: Any, values: Any, positions: np.ndarray) -> np.ndarray:
    """What the layer reads for outputs at some positions: [P, inputs], as the rows of its kernel.

    Args:
        values: its input, [N, C] or [N, ..., C] for a dense layer and [N, H, W, C] for others.
    """
    array = ops.convert_to_numpy(values)
    if isinstance(layer, keras.layers.Dense):
        return array.reshape(-1, array.shape[-1])[positions]
    sides = [_grid(layer, axis, size) for axis, size in enumerate(array.shape[1:3])]
    (num_rows, row_starts), (num_columns, column_starts) = sides
    image, place = np.divmod(positions, num_rows * num_columns)
    row, column = np.divmod(place, num_columns)
    rows = row_starts[row][:, None] + _offsets(layer, 0)
    columns = column_starts[column][:, None] + _offsets(layer, 1)
    inside = _inside(rows, array.shape[1])[:, :, None] & _inside(columns, array.shape[2])[:, None]
    found = array[
        image[:, None, None],
        np.clip(rows, 0, array.shape[1] - 1)[:, :, None],
        np.clip(columns, 0, array.shape[2] - 1)[:, None],
    ]
    return (found * inside[..., None]).reshape(len(positions), -1)


def _grid(layer: Any, axis: int, size: int) -> tuple[int, np.ndarray]:
    """Number of outputs along an axis of the input, and where the patch of each begins."""
    stride, extent = layer.strides[axis], int(_offsets(layer, axis)[-1]) + 1
    if layer.padding == "same":
        number = -(-size // stride)
        before = max((number - 1) * stride + extent - size, 0) // 2
    else:
        number, before = (size - extent) // stride + 1, 0
    return number, np.arange(number) * stride - before


def _offsets(layer: Any, axis: int) -> np.ndarray:
    return np.arange(layer.kernel_size[axis]) * layer.dilation_rate[axis]


def _inside(indices: np.ndarray, size: int) -> np.ndarray:
    return (indices >= 0) & (indices < size)


def fit_weights(layer: Any, inputs: np.ndarray, outputs: np.ndarray) -> None:
    """Set kernel and bias to those that map inputs [P, D] closest to outputs [P, K].

    Ridge regression: the penalty is on the difference to the present kernel.
    """
    old, _ = weights_of(layer)
    mean_input, mean_output = inputs.mean(axis=0), outputs.mean(axis=0)
    centred = inputs - mean_input
    errors = outputs - mean_output - centred @ old
    gram = (centred.T @ centred).astype("float64")
    penalty = RIDGE * np.trace(gram) / len(gram) + np.finfo("float32").tiny
    gram[np.diag_indices_from(gram)] += penalty
    new = old + np.linalg.solve(gram, (centred.T @ errors).astype("float64"))
    bias = mean_output - mean_input @ new
    layer.set_weights([new.reshape(layer.kernel.shape), bias])
