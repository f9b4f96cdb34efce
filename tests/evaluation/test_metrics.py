"""Figures against scikit-learn, closed forms and sums done by hand."""

import json

import numpy as np
import pytest
from sklearn import metrics

from keras_transfer.errors import DataError
from keras_transfer.evaluation.intervals import wilson
from keras_transfer.evaluation.metrics import evaluate, expected_calibration_error
from keras_transfer.evaluation.results import paired_gain

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]


def random_predictions(
    num_examples: int, num_classes: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and float32 probabilities that know a little about them."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_examples)
    logits = generator.normal(size=(num_examples, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    exponentials = np.exp(logits)
    return labels, np.float32(exponentials / exponentials.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("num_classes", [2, 4, 7])
def test_evaluate_equals_scikit_learn(num_classes):
    labels, probabilities = random_predictions(300, num_classes)
    found = evaluate(labels, probabilities, NAMES[:num_classes])
    predictions = probabilities.argmax(axis=1)
    assert found.num_examples == 300
    assert found.accuracy == metrics.accuracy_score(labels, predictions)
    assert found.balanced_accuracy == pytest.approx(
        metrics.balanced_accuracy_score(labels, predictions)
    )
    exact = probabilities / probabilities.astype(float).sum(axis=1, keepdims=True)
    assert found.log_loss == pytest.approx(metrics.log_loss(labels, exact))
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(labels, predictions))
    report = metrics.classification_report(
        labels, predictions, target_names=NAMES[:num_classes], output_dict=True
    )
    for name, figures in found.per_class.items():
        assert figures.precision == pytest.approx(report[name]["precision"])
        assert figures.recall == pytest.approx(report[name]["recall"])
        assert figures.f1 == pytest.approx(report[name]["f1-score"])
        assert figures.support == report[name]["support"]
    assert list(found.top_k) == [k for k in (3, 5) if k < num_classes]
    for k, share in found.top_k.items():
        ranked = np.argsort(-probabilities, axis=1)[:, :k]
        assert share == (ranked == labels[:, None]).any(axis=1).mean()


def test_intervals_equal_wilson_and_a_slow_bootstrap():
    labels, probabilities = random_predictions(60, 3)
    found = evaluate(labels, probabilities, NAMES[:3], seed=4)
    predictions = probabilities.argmax(axis=1)
    assert found.intervals["accuracy"] == wilson(int((predictions == labels).sum()), 60)
    for number, figures in enumerate(found.per_class.values()):
        hits = ((labels == number) & (predictions == number)).sum()
        assert figures.recall_interval == wilson(int(hits), int((labels == number).sum()))
    exact = probabilities / probabilities.astype(float).sum(axis=1, keepdims=True)
    losses = -np.log(exact[np.arange(60), labels])
    generator = np.random.default_rng(4)
    slow = []
    for _ in range(1000):
        drawn = generator.integers(0, 60, 60)
        hits = (predictions == labels)[drawn]
        recalls = [hits[labels[drawn] == number].mean() for number in set(labels[drawn])]
        error = expected_calibration_error(labels[drawn], exact[drawn])
        slow.append((np.mean(recalls), losses[drawn].mean(), error))
    expected = np.quantile(slow, [0.025, 0.975], axis=0).T
    names = ("balanced_accuracy", "log_loss", "expected_calibration_error")
    np.testing.assert_allclose([found.intervals[name] for name in names], expected, rtol=1e-9)


def test_evaluate_repeats_when_the_seed_repeats():
    labels, probabilities = random_predictions(50, 3)
    first, again, other = (
        evaluate(labels, probabilities, NAMES[:3], seed=seed).to_dict() for seed in (1, 1, 2)
    )
    assert first == again
    assert first["intervals"]["log_loss"] != other["intervals"]["log_loss"]
    assert first["accuracy"] == other["accuracy"]


def test_calibration_error_equals_the_sum_by_hand():
    # Two bins: (0.8, 0.867] with two of three right, (0.933, 1] with one of two right.
    probabilities = np.array([[0.85, 0.15], [0.82, 0.18], [0.14, 0.86], [0.95, 0.05], [0.0, 1.0]])
    labels = np.array([0, 1, 1, 0, 0])
    expected = 3 / 5 * abs((0.85 + 0.82 + 0.86) / 3 - 2 / 3) + 2 / 5 * abs(1.95 / 2 - 1 / 2)
    assert expected_calibration_error(labels, probabilities) == pytest.approx(expected)


def test_calibration_error_is_zero_when_confidence_equals_accuracy():
    probabilities = np.tile([0.75, 0.25], (4, 1))
    assert expected_calibration_error(np.array([0, 0, 0, 1]), probabilities) == 0


def test_evaluate_skips_a_class_that_does_not_occur():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.1, 0.7], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]])
    found = evaluate(labels, probabilities, NAMES[:3])
    assert found.balanced_accuracy == 0.75
    assert (found.per_class["cat"].support, found.per_class["cat"].recall) == (0, 0.0)
    assert found.per_class["cat"].recall_interval == (0.0, 1.0)
    assert found.confusion.tolist() == [[1, 0, 1], [0, 2, 0], [0, 0, 0]]


def test_evaluate_answers_for_a_single_example():
    found = evaluate(np.array([1]), np.array([[0.1, 0.9]]), NAMES[:2])
    assert found.accuracy == found.balanced_accuracy == 1.0
    assert found.log_loss == pytest.approx(-np.log(0.9))
    assert found.expected_calibration_error == pytest.approx(0.1)
    assert found.intervals["log_loss"] == pytest.approx((-np.log(0.9), -np.log(0.9)))


def test_evaluate_stays_finite_when_the_truth_has_no_probability():
    found = evaluate(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), NAMES[:2])
    assert np.isfinite(found.log_loss)
    assert np.isfinite(found.intervals["log_loss"]).all()


def test_to_dict_survives_json():
    labels, probabilities = random_predictions(40, 7)
    found = evaluate(labels, probabilities, NAMES)
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read == found.to_dict()
    assert read["interval"] == list(found.intervals["accuracy"])
    assert read["confusion"] == found.confusion.tolist()
    assert read["per_class"]["bee"]["f1"] == found.per_class["bee"].f1
    assert read["top_k"].keys() == {"3", "5"}


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [[0.5, 0.5]], "do not match"),
        ([], np.zeros((0, 2)), "do not match"),
        ([0], [[0.2, 0.3, 0.5]], "do not match"),
        ([2], [[0.5, 0.5]], "not a class index"),
        ([0], [[np.nan, np.nan]], "training has diverged"),
        ([0], [[3.0, -2.0]], "not probabilities"),
        ([0], [[0.2, 0.2]], "not probabilities"),
    ],
)
def test_evaluate_refuses_what_cannot_be_judged(labels, probabilities, message):
    with pytest.raises(DataError, match=message):
        evaluate(np.array(labels, int), np.array(probabilities), NAMES[:2])


def test_paired_gain_equals_the_formula_and_the_variance_of_differences():
    before = np.array([1] * 5 + [0] * 5)
    after = np.array([1] * 4 + [0] + [1] * 3 + [0] * 2)
    gain = paired_gain(before, after)
    assert gain.difference == pytest.approx(0.2)
    assert gain.standard_error == pytest.approx(np.sqrt(3 + 1 - 4 / 10) / 10)
    assert gain.standard_error == pytest.approx((after - before).std() / np.sqrt(10))


def test_paired_gain_is_zero_without_noise_when_nothing_changes():
    scores = np.random.default_rng(0).normal(size=20)
    gain = paired_gain(scores, scores)
    assert (gain.difference, gain.standard_error) == (0.0, 0.0)
