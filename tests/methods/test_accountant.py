"""The accountant against dp-accounting, closed forms, and what must rise and fall."""

import numpy as np
import pytest

from keras_transfer.methods.accountant import ORDERS, divergences, epsilon_of, least_noise

ORACLE = [
    (0.01, 1.1, 1000, 1e-5, None, 1.725291),
    (0.1, 2.0, 100, 1e-5, None, 2.586652),
    (0.5, 5.0, 50, 1e-6, None, 3.694714),
    (1.0, 10.0, 60, 1e-5, None, 3.540352),
    (0.02, 0.8, 300, 1e-4, None, 3.705828),
    (0.25, 100.0, 60, 1e-5, None, 0.067721),
    (1.0, 17.66, 60, 1e-5, 6.449, 2.000155),
    (0.25, 4.7, 60, 1e-5, 6.449, 1.971297),
]
"""Sampling rate, noise, steps, δ, noise of one more sum over all, and ε by dp-accounting 0.6.0.

`RdpAccountant(ORDERS)` composes `SelfComposedDpEvent(PoissonSampledDpEvent(rate,
GaussianDpEvent(noise)), steps)`, and `GaussianDpEvent` of the last noise.
"""


@pytest.mark.parametrize(("rate", "noise", "steps", "delta", "other", "expected"), ORACLE)
def test_epsilon_is_that_of_dp_accounting(rate, noise, steps, delta, other, expected):
    total = steps * divergences(rate, noise)
    if other:
        total = total + divergences(1, other)
    assert epsilon_of(total, delta) == pytest.approx(expected, abs=1e-5)


def test_divergences_without_sampling_are_the_closed_form_and_the_limit_of_sampling():
    np.testing.assert_allclose(divergences(1, 3.0), ORDERS / 18)
    np.testing.assert_allclose(divergences(1 - 1e-9, 3.0), ORDERS / 18, rtol=1e-6)


def test_epsilon_rises_with_steps_and_rate_and_falls_with_noise_and_delta():
    def spent(rate=0.1, noise=2.0, steps=100, delta=1e-5):
        return epsilon_of(steps * divergences(rate, noise), delta)

    assert spent(steps=101) > spent() > spent(steps=99)
    assert spent(rate=0.11) > spent() > spent(rate=0.09)
    assert spent(noise=1.9) > spent() > spent(noise=2.1)
    assert spent(delta=1e-6) > spent() > spent(delta=1e-4)


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 2.0, 100.0])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_the_least_noise_spends_the_budget_and_no_more(epsilon, rate):
    def spent(noise):
        return 60 * divergences(rate, noise)

    noise = least_noise(spent, epsilon, 1e-5)
    assert epsilon_of(spent(noise), 1e-5) == pytest.approx(epsilon, abs=1e-5)
    assert epsilon_of(spent(noise), 1e-5) <= epsilon < epsilon_of(spent(0.999 * noise), 1e-5)
