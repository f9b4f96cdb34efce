"""SimSiam: closed forms of its loss, its stopped gradient and its measure of a collapse."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer.config import override
from keras_transfer.data.datasets import Examples, Views
from keras_transfer.data.targets import Targets
from keras_transfer.data.views import strengths, view
from keras_transfer.errors import SpecError
from keras_transfer.pretext.simsiam import NegativeCosine, Pairs, SimSiam, spread
from keras_transfer.specs import RunSpec, ViewSpec

VIEWS = ViewSpec(policy="strong", count=None)


def loss_of(*columns: np.ndarray) -> np.ndarray:
    """The loss of p1, p2, z1, z2, one for each example."""
    outputs = keras.ops.stack([keras.ops.convert_to_tensor(x) for x in columns], axis=1)
    return np.asarray(NegativeCosine().call(None, outputs))


def test_the_loss_is_minus_one_for_equal_directions_and_one_for_opposite_ones():
    random = np.random.default_rng(0)
    z = random.normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_allclose(loss_of(z, 3 * z, 2 * z, z), -1, atol=1e-6)
    np.testing.assert_allclose(loss_of(-z, -z, z, z), 1, atol=1e-6)
    across = np.eye(4, dtype=np.float32)[[0]], np.eye(4, dtype=np.float32)[[1]]
    np.testing.assert_allclose(loss_of(across[0], across[0], across[1], across[1]), 0, atol=1e-6)


def test_each_view_is_predicted_from_the_other_one():
    one, other = np.eye(4, dtype=np.float32)[[[0]]], np.eye(4, dtype=np.float32)[[[1]]]
    one, other = one[0], other[0]
    # p1 is compared with z2 and p2 with z1: both fit.
    np.testing.assert_allclose(loss_of(one, other, other, one), -1, atol=1e-6)
    np.testing.assert_allclose(loss_of(one, other, one, other), 0, atol=1e-6)


def test_no_gradient_passes_through_the_targets():
    random = np.random.default_rng(0)
    parts = [tf.Variable(random.normal(size=(3, 8)).astype(np.float32)) for _ in range(4)]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(NegativeCosine().call(None, tf.stack(parts, axis=1)))
    p1, p2, z1, z2 = (np.asarray(x) for x in tape.gradient(loss, parts))
    assert np.abs(p1).max() > 0.01
    assert np.abs(p2).max() > 0.01
    assert not z1.any()
    assert not z2.any()


def test_the_spread_is_zero_for_constant_outputs_and_one_for_random_directions():
    random = np.random.default_rng(0)
    constant = np.tile(random.normal(size=(1, 64)), (100, 1)).astype(np.float32)
    assert float(spread(constant)) == pytest.approx(0, abs=1e-5)
    # Lengths do not count.
    scaled = constant * random.uniform(1, 9, (100, 1)).astype(np.float32)
    assert float(spread(scaled)) == pytest.approx(0, abs=1e-5)
    directions = random.normal(size=(5000, 64)).astype(np.float32)
    assert float(spread(directions)) == pytest.approx(1, abs=0.02)


def test_a_pair_has_two_views_of_one_image_and_no_view_is_in_two_pairs():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    targets = Targets.of_classes([0, 0], ("image",))
    views = Views(Examples(pixels, targets, np.array([7, 8])), VIEWS)
    read = Pairs(views).read(np.array([1, 1]), np.array([0, 1]))
    assert read.shape == (2, 2, 8, 8, 3)
    for place, number in enumerate([1, 2, 3, 4]):
        expected = view(pixels[1], 8, number, strengths=strengths(VIEWS))
        np.testing.assert_array_equal(read[place // 2, place % 2], expected)


def test_two_equal_views_are_refused():
    with pytest.raises(SpecError, match="views are switched off"):
        SimSiam().check(override(RunSpec(), {"views.policy": "none"}))
    SimSiam().check(override(RunSpec(), {"views.policy": "none", "views.rotation": 5.0}))
