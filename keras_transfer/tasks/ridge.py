"""Ridge regression on stored features, with penalties chosen by exact leave-one-out errors."""

from typing import Final

import numpy as np
import scipy

from keras_transfer.errors import DataError
from keras_transfer.tasks.linear_head import (
    MEMORY,
    MOST_COLUMNS,
    DesignMatrix,
    HeadFeatures,
    LinearHead,
)

PENALTIES: Final = tuple(10.0 ** (exponent / 2) for exponent in range(-2, 13))
"""Candidates for the penalty: 0.1 to 10^6."""


def solve_ridge(
    features: HeadFeatures,
    targets: np.ndarray,
    *,
    penalties: tuple[float, ...] = (),
    memory: int = MEMORY,
) -> LinearHead:
    """A ridge regression for each of K columns, with the penalty of its least leave-one-out error.

    It minimises sum_i (mean of squared errors over views) + penalty |w|^2 for w and a free bias.
    An example is left out with all its views; the error is exact, for the standardisation of all
    examples, as in Allen's PRESS statistic: (1 - H_ii)^-1 r_i with the residuals r_i [V] of example
    i and its block H_ii [V, V] of the hat matrix.

    Args:
        targets: [N, K]; NaN is left out, and each column needs two examples.
        penalties: one, or several to choose from; by default `PENALTIES`.
        memory: bytes of standardised features that may be held.

    Raises:
        DataError: a feature is not finite, or there are too many features.
    """
    num_outputs = targets.shape[1]
    kernel, bias = np.zeros((features.num_columns, num_outputs)), np.zeros(num_outputs)
    chosen, errors = np.zeros(num_outputs), np.zeros(num_outputs)
    patterns, pattern_of = np.unique(~np.isnan(targets), axis=1, return_inverse=True)
    for number, is_known in enumerate(patterns.T):
        columns, rows = pattern_of == number, np.flatnonzero(is_known)
        matrix = DesignMatrix.of(features.take(rows), memory)
        penalty, coefficients, offset, error = _ridge(
            matrix, targets[rows][:, columns].astype(np.float64), penalties or PENALTIES
        )
        kernel[:, columns] = matrix.to_kernel(coefficients)
        bias[columns] = offset - matrix.mean @ kernel[:, columns]
        chosen[columns], errors[columns] = penalty, error
    return LinearHead(kernel, bias, float(np.median(chosen)), errors.mean(), 0)


def _ridge(
    matrix: DesignMatrix, targets: np.ndarray, penalties: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Penalties, coefficients [D, K], bias and mean squared leave-one-out errors of K columns."""
    _check_size(matrix)
    views, size = matrix.num_views, matrix.num_views * len(targets)
    mean, target_mean = np.zeros(matrix.num_columns), targets.mean(axis=0)
    for _, block in matrix.blocks():
        mean += block.sum(axis=0) / size
    values, vectors = scipy.linalg.eigh(matrix.moments(mean), overwrite_a=True)
    products = np.zeros((matrix.num_columns, targets.shape[1]))
    for part, block in matrix.blocks():
        products += (block - mean).T @ np.repeat(targets[part] - target_mean, views, axis=0)
    inverse = 1 / (np.maximum(values, 0) + views * np.array(penalties)[:, None])
    rotated = inverse[:, :, None] * (vectors.T @ products)
    errors = np.zeros((len(penalties), targets.shape[1]))
    for part, block in matrix.blocks():
        inputs = ((block - mean) @ vectors).reshape(-1, views, len(values))
        for number, (shrinkage, kernel) in enumerate(zip(inverse, rotated, strict=True)):
            residuals = (targets[part] - target_mean)[:, None] - inputs @ kernel
            hat = 1 / size + (inputs * shrinkage) @ inputs.transpose(0, 2, 1)
            left_out = np.linalg.solve(np.eye(views) - hat, residuals)
            errors[number] += np.square(left_out).sum(axis=(0, 1)) / size
    best, columns = errors.argmin(axis=0), np.arange(targets.shape[1])
    coefficients = vectors @ rotated[best, :, columns].T
    bias = target_mean - mean @ coefficients
    return np.array(penalties)[best], coefficients, bias, errors[best, columns]


def _check_size(matrix: DesignMatrix) -> None:
    if matrix.num_columns > MOST_COLUMNS:
        raise DataError(
            "there are too many features for the exact head of a regression",
            expected=f"at most {MOST_COLUMNS:,} features, or training images times views",
            received=f"{matrix.num_columns:,} features",
            fix="set model.pooling=avg, or lower views.count",
        )
