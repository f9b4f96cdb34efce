"""Which artefacts pass, and which are refused and why."""

import functools

import numpy as np
import pytest

from keras_transfer.export.formats import agreement
from keras_transfer.tasks.single_label import SingleLabel

agree = functools.partial(agreement.agree, task=SingleLabel(("a", "b", "c", "d")))


@pytest.fixture
def model() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of 200 images of 4 classes, 80 % of them right, and their classes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 200)
    probabilities = np.full((200, 4), 0.05, np.float32)
    tops = np.where(np.arange(200) < 160, labels, (labels + 1) % 4)
    probabilities[np.arange(200), tops] = 0.85
    return probabilities, labels


@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic", "int8"])
def test_the_model_itself_agrees_in_every_precision(precision, model):
    found = agree(*model[:1], *model, precision=precision)
    assert found.refusal == ""
    assert (found.label_agreement, found.max_abs_difference) == (1.0, 0.0)
    assert found.score == 0.8
    assert found.score_interval[0] < 0.8 < found.score_interval[1]


def test_rounding_is_bounded_by_the_precision_of_the_format_and_of_the_training(model):
    probabilities, labels = model
    moved = probabilities + np.float32(1e-3) * np.float32([1, -1, 0, 0])
    refused = agree(moved, probabilities, labels, precision="float32")
    assert "more than 1e-05" in refused.refusal
    assert agree(moved, probabilities, labels, precision="float16").refusal == ""
    mixed = agree(moved, probabilities, labels, precision="float32", trained_in="mixed_bfloat16")
    assert mixed.refusal == ""


def test_a_quantised_format_may_change_a_few_labels_but_not_many(model):
    probabilities, labels = model
    for num_changed, part in ((5, ""), (30, "accuracy falls")):
        outputs = probabilities.copy()
        outputs[:num_changed] = np.roll(outputs[:num_changed], 1, axis=1)
        found = agree(outputs, probabilities, labels, precision="int8")
        assert found.label_agreement == 1 - num_changed / 200
        assert found.refusal.startswith(part)
        assert bool(found.refusal) == bool(part)


def test_labels_that_change_without_loss_of_accuracy_are_refused_too(model):
    probabilities, labels = model
    outputs = probabilities.copy()
    wrong = np.arange(160, 200)
    outputs[wrong] = np.roll(outputs[wrong], 1, axis=1)  # wrong before, wrong or right now
    found = agree(outputs, probabilities, labels, precision="dynamic")
    assert found.score >= 0.8
    assert "with 95 % certainty less than 90%" in found.refusal


def test_nan_and_missing_rows_or_columns_are_refused(model):
    probabilities, labels = model
    broken = np.where(np.arange(4) == 0, np.nan, probabilities)
    for outputs in (broken, probabilities[:, :3], probabilities[:-1]):
        refusal = agree(outputs, *model, precision="int8").refusal
        assert "contain NaN or Inf, or have the wrong shape" in refusal
    doubled = agree(2 * probabilities, probabilities, labels, precision="int8")
    assert "differs from 1 by" in doubled.refusal
