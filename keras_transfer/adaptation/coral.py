"""CORAL: source features get the mean and the covariance of the target's, then a head is solved.

Sun, Feng and Saenko 2016, "Return of Frustratingly Easy Domain Adaptation":

    aligned = (source - m_s) C_s^-1/2 C_t^1/2 + m_t

With fewer images than features a covariance has no inverse and its eigenvalues are too far apart,
so both are shrunk as of Ledoit and Wolf 2004. The head reads target features as they are.
"""

from dataclasses import replace

import numpy as np
from scipy import linalg
from sklearn.covariance import ledoit_wolf

from keras_transfer.adaptation.domains import Domains


def adapt(domains: Domains) -> Domains:
    """The head solved on aligned source features."""
    aligned = align(domains.source, domains.target)
    head = domains.solved(aligned, domains.labels, domains.weights)
    return replace(domains, source=aligned, kernel=head.kernel, bias=head.bias)


def align(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Source features [N, D] with the mean and the covariance of the target's [M, D]."""
    # Features in units in which they vary alike, so that shrinking does not favour large ones.
    deviations = source.std(axis=0)
    scale = deviations + 0.1 * (deviations.mean() or 1.0)
    first, second = source / scale, target / scale
    moved = (first - first.mean(axis=0)) @ transport(first, second) + second.mean(axis=0)
    return np.asarray(moved * scale)


def transport(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """C_s^-1/2 C_t^1/2 [D, D] of features [N, D] and [M, D]."""
    first, second = ledoit_wolf(source)[0], ledoit_wolf(target)[0]
    return power(first, -0.5) @ power(second, 0.5)


def power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """A power of a symmetric positive matrix."""
    values, vectors = linalg.eigh(matrix)
    return (vectors * np.maximum(values, 1e-12 * values[-1]) ** exponent) @ vectors.T
