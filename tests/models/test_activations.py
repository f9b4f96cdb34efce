"""Logits become outputs without overflow."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from keras_transfer.models.activations import activate

LOGITS = np.float32([[0, 1, -2], [1000, -1000, 3], [-88, 20, 0.5]])


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("softmax", softmax(np.float64(LOGITS), axis=1)), ("sigmoid", expit(np.float64(LOGITS)))],
)
def test_activations_equal_scipy(activation, expected):
    found = activate(LOGITS, activation)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-38)


def test_linear_outputs_are_the_logits():
    np.testing.assert_array_equal(activate(LOGITS, "linear"), LOGITS)
