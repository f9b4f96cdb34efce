"""Distances between the features of two domains, which training can make small.

Features are float32 [B, D] of either domain, in batches of the same size.
"""

from typing import Any, Final

import keras
from keras import ops

KERNEL_WIDTHS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors of the median squared distance in the kernels of `mean_discrepancy`."""


def covariance_distance(source: Any, target: Any) -> Any:
    """The squared Frobenius distance of both covariances, divided by 4 D²: Deep CORAL.

    Source: B. Sun and K. Saenko, "Deep CORAL", ECCV 2016 workshops, equation 1.
    """
    difference = _covariance(source) - _covariance(target)
    return ops.sum(ops.square(difference)) / (4 * source.shape[-1] ** 2)


def _covariance(features: Any) -> Any:
    centred = features - ops.mean(features, axis=0)
    return ops.transpose(centred) @ centred / (ops.shape(features)[0] - 1)


def mean_discrepancy(source: Any, target: Any) -> Any:
    """The squared maximum mean discrepancy with a mean of Gaussian kernels; 0 for equal batches.

    A kernel is exp(-d² / (c m)) with the median m of the squared distances d² between the features
    of both batches together, which is taken as a constant, and c of `KERNEL_WIDTHS`. It is the
    biased estimate, means over all pairs, which is never negative.

    Source: M. Long et al., "Learning transferable features with deep adaptation networks",
    ICML 2015; A. Gretton et al., "A kernel two-sample test", JMLR 2012, equation 5.
    """
    joined = ops.concatenate([source, target])
    norms = ops.sum(ops.square(joined), axis=1)
    squared = norms[:, None] + norms[None] - 2 * joined @ ops.transpose(joined)
    squared = ops.maximum(squared, 0.0)
    median = ops.maximum(ops.stop_gradient(ops.median(squared)), keras.config.epsilon())
    kernel = sum(ops.exp(-squared / (width * median)) for width in KERNEL_WIDTHS)
    size = ops.shape(source)[0]
    within = ops.mean(kernel[:size, :size]) + ops.mean(kernel[size:, size:])
    return (within - 2 * ops.mean(kernel[:size, size:])) / len(KERNEL_WIDTHS)
