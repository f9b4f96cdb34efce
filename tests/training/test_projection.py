"""Projected gradients of several targets: closed forms, and a step that is Keras's own."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer.tasks.joint_losses import LossPart, MultiTaskLoss
from keras_transfer.training.projection import ProjectedModel, joined, projected

KEY = tf.constant([3, 0])


def project(*gradients, step=3):
    found = projected(tf.constant(np.float32(gradients)), tf.constant([step, 0]))
    return np.asarray(found)


def test_gradients_without_conflict_stay_as_they_are():
    gradients = np.abs(np.random.default_rng(0).normal(size=(4, 7))).astype(np.float32)
    np.testing.assert_array_equal(project(*gradients), gradients)
    np.testing.assert_array_equal(project([1, 0], [0, 1], [0, 0]), [[1, 0], [0, 1], [0, 0]])


def test_each_of_two_in_conflict_is_projected_on_the_other_as_it_was():
    first, second = np.float32([2.0, 0.0]), np.float32([-1.0, 1.0])
    found = project(first, second)
    # 2e₁ + (-1, 1) and (-1, 1) + ½ · 2e₁
    np.testing.assert_allclose(found, [[1.0, 1.0], [0.0, 1.0]], atol=1e-6)
    assert found[0] @ second >= -1e-6
    assert found[1] @ first >= -1e-6


def slow(gradients, target, order):
    """The rule for one target with its others in this order."""
    own = gradients[target].copy()
    for other in order:
        product = own @ gradients[other]
        if product < 0:
            own -= product / (gradients[other] @ gradients[other]) * gradients[other]
    return own


def test_three_are_projected_in_an_order_that_the_step_decides():
    generator = np.random.default_rng(2)
    gradients = generator.normal(size=(3, 4)) - 0.4 * np.sign(np.arange(4) - 1.5)
    gradients[2] = -gradients[0] - 0.5 * gradients[1] + 0.1 * generator.normal(size=4)
    seen = set()
    for step in range(12):
        found = project(*gradients, step=step)
        np.testing.assert_array_equal(found, project(*gradients, step=step))
        for target in range(3):
            others = [other for other in range(3) if other != target]
            fits = [
                order
                for order in itertools.permutations(others)
                if np.allclose(found[target], slow(gradients, target, order), atol=1e-4)
            ]
            assert fits
            seen |= {(target, *fits)} if len(fits) == 1 else set()
    assert len({target for target, _ in seen}) < len(seen)


def test_only_shared_weights_are_projected():
    own = [[tf.constant([2.0, 0.0]), tf.constant([[1.0], [0.0]])]]
    other = [[tf.constant([-1.0, 1.0]), tf.constant([[-3.0], [1.0]])]]
    shared, head = joined(own + other, [True, False], KEY)
    np.testing.assert_allclose(shared, [1.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(head, [[-2.0], [1.0]])
    both = joined(own + other, [False, False], KEY)
    np.testing.assert_allclose(both[0], [1.0, 1.0])


def trained(project_gradients, sign):
    """Weights and losses after three steps; targets agree, or are in conflict with sign -1."""
    generator = np.random.default_rng(0)
    inputs = np.abs(generator.normal(size=(16, 3))).astype(np.float32)
    targets = inputs.sum(axis=1, keepdims=True) * np.float32([[5.0, sign * 5.0]])
    pixels = keras.Input((3,))
    shared = keras.layers.Dense(2, use_bias=False)
    head = keras.layers.Dense(2, use_bias=False)
    outputs = head(shared(pixels))
    loss = MultiTaskLoss(
        [LossPart(keras.losses.MeanSquaredError(), slice(n, n + 1)) for n in range(2)]
    )
    kind = ProjectedModel if project_gradients else keras.Model
    model = kind(pixels, outputs)
    if project_gradients:
        model.separate, model.own = loss.separate, head
    shared.kernel.assign(np.full((3, 2), 0.1))
    head.kernel.assign(np.full((2, 2), 0.1))
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss=loss, jit_compile=False)
    weights = np.linspace(0.5, 1.5, 16, dtype=np.float32)
    history = model.fit(
        inputs, targets, sample_weight=weights, batch_size=8, epochs=3, shuffle=False, verbose=0
    )
    return [*model.get_weights(), history.history["loss"]]


@pytest.mark.parametrize(("sign", "is_same"), [(1.0, True), (-1.0, False)])
def test_training_is_keras_s_own_where_targets_agree_and_another_where_not(sign, is_same):
    plain, found = trained(False, sign), trained(True, sign)
    assert np.allclose(plain[0], found[0], rtol=1e-5) == is_same
    if is_same:
        for one, other in zip(plain, found, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)
