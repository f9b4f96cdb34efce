"""The weights that a later phase leaves have the lowest calibrated validation loss."""

import keras
import numpy as np
import pytest
from small_models import make_classifier

from keras_transfer.models.activations import activate
from keras_transfer.tasks.multi_label import MultiLabel
from keras_transfer.tasks.regression import Regression
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.progress import read_weights
from keras_transfer.training.selection import (
    SHARES,
    best_temperature,
    blend,
    choose_share,
    divide_logits,
)

TASK = SingleLabel(("a", "b"))
VALUES = np.array([0, 0, 0, 1, 1, 1])


@pytest.fixture
def variable():
    return keras.Variable(np.zeros(2, np.float32), name="logits")


def predict_with(best):
    """Outputs that favour the second class the more, the farther the variable is from `best`."""

    def predict_for(variable):
        distance = float(np.abs(np.array(variable) - best).max())
        margin = np.where(VALUES == 0, 10, -10)
        margin[0] *= -1  # One image is always wrong.
        logits = np.stack([margin, -margin], axis=1) + [0, 30 * distance]
        return activate(logits.astype(np.float32), "softmax")

    return predict_for


@pytest.mark.parametrize("best", [0.0, 0.5, 1.0])
def test_share_with_the_lowest_loss_is_chosen_and_set(variable, best):
    before, outputs = read_weights([variable]), predict_with(best)
    variable.assign(np.ones(2, np.float32))
    share, temperature = choose_share(
        [variable], before, task=TASK, values=VALUES, predict=lambda: outputs(variable)
    )
    assert share == best
    assert temperature > 1 if best else temperature == 1
    np.testing.assert_allclose(np.array(variable), best)


def test_equally_good_weights_stay_as_they_were_before(variable):
    before = read_weights([variable])
    variable.assign(np.ones(2, np.float32))
    same = np.full((6, 2), 0.5, np.float32)
    args = {"task": TASK, "values": VALUES, "predict": lambda: same}
    assert choose_share([variable], before, **args) == (SHARES[0], 1) == (0, 1)
    np.testing.assert_array_equal(np.array(variable), 0)


def test_blend_is_the_mean_and_exact_at_its_ends(variable):
    path = variable.path
    before = {path: np.float32([0.1, 1e8])}
    after = {path: np.float32([0.3, 1.0])}
    for share, expected in ((0.0, before[path]), (1.0, after[path])):
        blend([variable], before, after, share)
        np.testing.assert_array_equal(np.array(variable), expected)
    blend([variable], before, after, 0.5)
    np.testing.assert_allclose(np.array(variable), [0.2, 5e7], rtol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_loss_at_the_best_temperature_does_not_depend_on_the_scale_of_logits(activation):
    task = TASK if activation == "softmax" else MultiLabel(("a", "b"))
    values = VALUES if activation == "softmax" else np.eye(2, dtype=np.float32)[VALUES]
    logits = np.float32([[2, 0], [1, 0], [-1, 0], [0, 2], [0, 1], [1, 0]])
    found = [
        best_temperature(task, values, activate(scale * logits, activation)) for scale in (1, 3)
    ]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
    assert 3 * found[0][0] == pytest.approx(found[1][0], rel=1e-2)
    plain = task.example_losses(values, activate(logits, activation)).mean()
    assert found[0][1] <= plain


def test_perfect_predictions_of_certainty_have_a_finite_loss():
    outputs = np.eye(2, dtype=np.float32)[VALUES]
    assert 0 <= best_temperature(TASK, VALUES, outputs)[1] < 1e-3


def test_numbers_are_not_calibrated():
    task = Regression(("weight",), means=(0.0,), deviations=(1.0,))
    values, outputs = np.float32([[1.0], [2.0]]), np.float32([[1.5], [2.0]])
    expected = task.example_losses(values, outputs).mean()
    assert best_temperature(task, values, outputs) == (1, pytest.approx(expected))


def test_logits_are_divided_in_the_last_dense_layer():
    classifier = make_classifier("small")
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    before = classifier.model.predict_on_batch(images)
    divide_logits(classifier, 2.0)
    np.testing.assert_allclose(classifier.model.predict_on_batch(images), before / 2, rtol=1e-5)
