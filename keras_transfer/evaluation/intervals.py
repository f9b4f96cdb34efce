"""95 % intervals: Wilson's for shares, the percentile bootstrap for everything else."""

import math
from collections.abc import Callable

import numpy as np

Interval = tuple[float, float]

Z95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""

_NUM_CELLS = 4_000_000
"""Weights held at a time while resampling: bounds the memory to about 100 MB."""


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a share, 95 %, without continuity correction.

    Unlike the normal approximation it stays in 0-1 and has a width above 0 at 0 and 100 %. It is
    (0, 1) without trials.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927).
    """
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, Z95 * Z95
    centre = share + z2 / (2 * trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    scale = 1 + z2 / trials
    # The formula is exact at both ends; only rounding errors are removed here.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == trials else (centre + half) / scale
    return low, high


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    num_examples: int,
    *,
    seed: int,
    num_resamples: int = 1000,
) -> np.ndarray:
    """Percentile bootstrap intervals, 95 %, of statistics of resampled examples.

    Args:
        statistic: from how often each example was drawn, [R, N], to K figures of each resample,
            [R, K].

    Returns:
        Low and high ends, [2, K].

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7 (1979).
    """
    generator = np.random.default_rng(seed)
    num_rows = max(1, min(num_resamples, _NUM_CELLS // num_examples))
    figures = []
    for start in range(0, num_resamples, num_rows):
        rows = min(num_rows, num_resamples - start)
        drawn = generator.integers(0, num_examples, (rows, num_examples))
        drawn += num_examples * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size)
        figures.append(statistic(counts.reshape(drawn.shape).astype(np.float64)))
    return np.quantile(np.concatenate(figures), [0.025, 0.975], axis=0)


def sum_by_group(weights: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    """Sums [R, num_groups] of weights [R, N] whose columns belong to groups [N]."""
    sums = np.zeros((len(weights), num_groups))
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)
    sums[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums
