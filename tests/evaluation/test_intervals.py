"""Intervals against closed forms and a resampling written out example by example."""

import math

import numpy as np
import pytest

from keras_transfer.evaluation.intervals import bootstrap, sum_by_group, wilson

Z2 = 1.959963984540054**2


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (153, 153, 153 / (153 + Z2), 1.0),
        (0, 10, 0.0, Z2 / (10 + Z2)),
        (1, 1, 1 / (1 + Z2), 1.0),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_equals_known_values(successes, trials, low, high):
    found = wilson(successes, trials)
    assert found == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_where_the_score_test_is_on_its_edge():
    for successes, trials in [(7, 40), (144, 153), (1, 3)]:
        for edge in wilson(successes, trials):
            distance = successes / trials - edge
            score = distance / math.sqrt(edge * (1 - edge) / trials)
            assert score**2 == pytest.approx(Z2)


def test_bootstrap_equals_a_slow_one():
    values = np.random.default_rng(1).normal(size=37)
    found = bootstrap(lambda counts: counts @ values[:, None] / 37, 37, seed=5)
    generator = np.random.default_rng(5)
    means = [values[generator.integers(0, 37, 37)].mean() for _ in range(1000)]
    np.testing.assert_allclose(found[:, 0], np.percentile(means, [2.5, 97.5]), rtol=1e-12)


def test_bootstrap_of_a_mean_has_the_width_of_theory():
    values = np.random.default_rng(2).normal(3.0, 2.0, size=2000)
    low, high = bootstrap(lambda counts: counts @ values[:, None] / 2000, 2000, seed=0)[:, 0]
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(2000), rel=0.1)


def test_bootstrap_does_not_depend_on_how_it_is_cut_to_fit_memory():
    values = np.random.default_rng(3).normal(size=30_000)

    def mean(counts: np.ndarray) -> np.ndarray:
        assert counts.size <= 4_000_000
        return counts @ values[:, None] / 30_000

    found = bootstrap(mean, 30_000, seed=0, num_resamples=150)
    generator = np.random.default_rng(0)
    means = [values[generator.integers(0, 30_000, 30_000)].mean() for _ in range(150)]
    np.testing.assert_allclose(found[:, 0], np.quantile(means, [0.025, 0.975]), rtol=1e-9)


def test_sum_by_group_leaves_empty_groups_at_zero():
    weights = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0]])
    found = sum_by_group(weights, np.array([3, 1, 3, 0]), 5)
    np.testing.assert_array_equal(found, [[4, 2, 0, 4, 0], [1, 1, 0, 0, 0]])
