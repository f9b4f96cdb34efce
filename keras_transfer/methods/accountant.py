"""Privacy of repeated Gaussian noise: Rényi differential privacy, and its conversion to (ε, δ).

A mechanism adds Gaussian noise of deviation sigma times the largest influence of one example to a
sum over examples, each of which takes part with probability q. Its Rényi divergences at integer
orders a, between data with and without one example, are

    1/(a - 1) log sum_k binom(a, k) (1 - q)^(a - k) q^k exp(k (k - 1) / (2 sigma^2)),

which is a / (2 sigma^2) for q = 1. Those of several mechanisms add up.

Sources: I. Mironov, K. Talwar and L. Zhang, "Rényi differential privacy of the sampled Gaussian
mechanism", arXiv:1908.10530; the conversion is of B. Balle et al., "Hypothesis testing
interpretations and Rényi differential privacy", AISTATS 2020, theorem 21.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from scipy.special import gammaln, logsumexp

ORDERS: Final = np.array([*range(2, 128), *(2**power for power in range(7, 14))])
"""Orders a; the highest serve the smallest ε."""

_TOLERANCE: Final = 1e-9


def divergences(sampling_rate: float, noise: float) -> np.ndarray:
    """Rényi divergences of one use of the mechanism, float64, one for each of `ORDERS`.

    Args:
        sampling_rate: q, above 0 and at most 1.
        noise: sigma, above 0.
    """
    if sampling_rate == 1:
        return ORDERS / (2 * noise**2)
    return np.array([_divergence(order, sampling_rate, noise) for order in ORDERS])


def _divergence(order: int, sampling_rate: float, noise: float) -> float:
    k = np.arange(order + 1)
    terms = (
        gammaln(order + 1)
        - gammaln(k + 1)
        - gammaln(order - k + 1)
        + (order - k) * math.log1p(-sampling_rate)
        + k * math.log(sampling_rate)
        + k * (k - 1) / (2 * noise**2)
    )
    return float(logsumexp(terms)) / (order - 1)


def epsilon_of(total: np.ndarray, delta: float) -> float:
    """The least ε at this δ, of the sum of all divergences by `ORDERS`."""
    epsilons = total + np.log1p(-1 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return max(0.0, float(epsilons.min()))


def least_noise(spent: Callable[[float], np.ndarray], epsilon: float, delta: float) -> float:
    """The least sigma whose divergences `spent(sigma)` cost at most ε at δ; by bisection.

    `spent` decreases in sigma, and for a high enough one it costs less than ε.
    """
    low = high = 1.0
    while epsilon_of(spent(high), delta) > epsilon:
        high *= 2
    while epsilon_of(spent(low), delta) <= epsilon:
        low /= 2
    while high > low * (1 + _TOLERANCE):
        middle = math.sqrt(low * high)
        if epsilon_of(spent(middle), delta) > epsilon:
            low = middle
        else:
            high = middle
    return high
