"""Exact heads against scikit-learn, brute force and closed forms."""

import numpy as np
import pytest
from scipy import special
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from keras_transfer.errors import DataError
from keras_transfer.specs import TrainingSpec
from keras_transfer.tasks import linear_head, ridge
from keras_transfer.tasks.linear_head import (
    STRENGTHS,
    HeadFeatures,
    LinearHead,
    folds_of,
    solve_logistic,
    solve_softmax,
)
from keras_transfer.tasks.multi_label import MultiLabel
from keras_transfer.tasks.regression import Regression
from keras_transfer.tasks.ridge import solve_ridge
from keras_transfer.tasks.single_label import SingleLabel


@pytest.fixture(autouse=True)
def _one_thread():
    """scikit-learn's products have few columns, and wait for threads longer than they compute."""
    with threadpool_limits(1):
        yield


def features_of(views: np.ndarray) -> HeadFeatures:
    """Features [N, V, D]."""
    return HeadFeatures(lambda rows, view: views[rows, view], *views.shape)


def digits(size: int, *, views: int = 1, classes: int = 10, dtype: type = np.float32):
    """Scans as features [N, V, 64], views with noise, and their digits."""
    scans = load_digits(n_class=classes)
    noise = np.random.default_rng(0).normal(size=(size, views, 64))
    noise[:, 0] = 0
    return (scans.data[:size, None] + noise).astype(dtype), scans.target[:size]


def half(views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half-standardised features [N * V, D] and their divisors."""
    first = views[:, 0].astype(np.float64)
    deviations = first.std(axis=0)
    scale = np.sqrt((deviations + 0.1 * deviations.mean()) * deviations.mean())
    return ((views - first.mean(axis=0)) / scale).reshape(-1, views.shape[2]), scale


def softmax_objective(head: LinearHead, views: np.ndarray, labels: np.ndarray, weights: np.ndarray):
    """The objective for each example, in units of C."""
    logits = views.astype(np.float64) @ head.kernel + head.bias
    losses = special.logsumexp(logits, axis=2) - np.take_along_axis(
        logits, np.broadcast_to(labels[:, None, None], (*logits.shape[:2], 1)), axis=2
    ).squeeze(2)
    penalty = np.sum((head.kernel * half(views)[1][:, None]) ** 2) / 2
    return (weights @ losses.mean(axis=1) + penalty / head.strength) / len(labels)


def reference(views: np.ndarray, labels: np.ndarray, weights: np.ndarray, strength: float):
    """scikit-learn's optimum as a head on features as they are."""
    rows, scale = half(views)
    model = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-9)
    repeats = views.shape[1]
    model.fit(rows, np.repeat(labels, repeats), np.repeat(weights / repeats, repeats))
    coefficients, bias = model.coef_.T, model.intercept_
    if bias.shape == (1,):
        coefficients, bias = coefficients * [-0.5, 0.5], bias * [-0.5, 0.5]
    kernel = coefficients / scale[:, None]
    bias = bias - views[:, 0].astype(np.float64).mean(axis=0) @ kernel
    return LinearHead(kernel, bias, strength, 0, 0)


def unfavourable(size: int = 300):
    """Two views of digits with copied, constant, dead, large and far features, and weights."""
    views, labels = digits(size, views=2)
    views = np.concatenate(
        [
            views,
            views[..., 20:40],
            views[..., 30:31] * 1e3,
            views[..., 40:41] / 1e3,
            np.full_like(views[..., :1], 7),
            views[..., 36:37] + 1e4,
        ],
        axis=2,
    )
    return views, labels, np.random.default_rng(1).uniform(0.2, 3, size)


@pytest.mark.parametrize("strength", [0.03, 1.0])
def test_the_loss_is_that_of_scikit_learn(strength):
    views, labels, weights = unfavourable()
    found = solve_softmax(features_of(views), np.eye(10)[labels], weights, strengths=(strength,))
    expected = reference(views, labels, weights, strength)
    best = softmax_objective(expected, views, labels, weights)
    assert softmax_objective(found, views, labels, weights) == pytest.approx(best, abs=1e-6)
    np.testing.assert_allclose(
        special.softmax(views @ found.kernel + found.bias, axis=2),
        special.softmax(views @ expected.kernel + expected.bias, axis=2),
        atol=1e-3,
    )
    losses = -special.log_softmax(views @ found.kernel + found.bias, axis=2)
    true = losses[np.arange(len(labels)), :, labels].mean(axis=1)
    assert found.loss == pytest.approx(np.average(true, weights=weights))
    assert (found.strength, 0 < found.num_iterations <= 100) == (strength, True)


def test_c_of_two_classes_is_half_of_scikit_learn_s():
    views, labels = digits(200, classes=2)
    ones = np.ones(200)
    found = solve_softmax(features_of(views), np.eye(2)[labels], ones, strengths=(0.1,))
    expected = reference(views, labels, ones, 0.2)
    np.testing.assert_allclose(found.kernel, expected.kernel, atol=1e-5)
    logistic = solve_logistic(features_of(views), labels[:, None], ones[:, None], strengths=(0.2,))
    np.testing.assert_allclose(
        logistic.kernel[:, 0], expected.kernel[:, 1] - expected.kernel[:, 0], atol=1e-5
    )


def test_streamed_features_give_the_same_head_as_held_ones(monkeypatch):
    monkeypatch.setattr(linear_head, "_BLOCK_BYTES", 8 * 64 * 2 * 37)
    views, labels = digits(200, views=2, dtype=np.float16)
    calls = []
    features = HeadFeatures(
        lambda rows, view: calls.append(len(rows)) or views[rows, view], *views.shape
    )
    targets, ones = np.eye(10)[labels], np.ones(200)
    held = solve_softmax(features, targets, ones)
    num_reads = len(calls)
    streamed = solve_softmax(features, targets, ones, memory=0)
    np.testing.assert_allclose(streamed.kernel, held.kernel, rtol=1e-6, atol=1e-9)
    assert max(calls) == 2 * 37  # The standardisation reads one view only.
    assert len(calls) > 10 * num_reads
    values = np.stack([labels, views[:, 0, 20]], axis=1).astype(np.float64)
    for left, right in zip(
        *(vars(solve_ridge(features, values, memory=memory)).values() for memory in (10**9, 0)),
        strict=True,
    ):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("most_columns", "memory"), [(4096, 10**9), (4096, 0), (8, 0)])
def test_more_features_than_examples_give_scikit_learn_s_loss(monkeypatch, most_columns, memory):
    monkeypatch.setattr(linear_head, "MOST_COLUMNS", most_columns)
    views, labels = digits(25, views=2)
    labels = labels % 3
    found = solve_softmax(
        features_of(views), np.eye(3)[labels], np.ones(25), strengths=(0.3,), memory=memory
    )
    best = softmax_objective(reference(views, labels, np.ones(25), 0.3), views, labels, np.ones(25))
    assert softmax_objective(found, views, labels, np.ones(25)) == pytest.approx(best, abs=1e-6)


def test_a_head_on_twenty_examples_with_dead_features_is_finite():
    views, labels = digits(20, views=4, dtype=np.float16)
    views[:, 0, ::2] = 0
    found = solve_softmax(features_of(views), np.eye(10)[labels], np.ones(20))
    assert found.strength == 0.1
    logits = views[:, 0] @ found.kernel + found.bias
    assert np.abs(logits).max() < 30
    assert (logits.argmax(axis=1) == labels).mean() > 0.8


def test_constant_features_give_the_shares_of_classes_and_half_an_example_for_absent_ones():
    views = np.full((10, 2, 3), 5, np.float16)
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 3])
    found = solve_softmax(features_of(views), np.eye(4)[labels], np.ones(10))
    np.testing.assert_allclose(found.kernel, 0, atol=1e-12)
    expected = np.array([6, 3, 0.5, 1]) / 10.5
    np.testing.assert_allclose(special.softmax(found.bias), expected, atol=1e-5)
    known = np.stack([labels > 0, labels >= 0, labels < 0, np.full(10, np.nan)], axis=1)
    label_head = solve_logistic(features_of(views), known, np.ones((10, 4)))
    expected = np.array([4 / 10, 10 / 10.5, 0.5 / 10.5, 0.5])
    np.testing.assert_allclose(special.expit(label_head.bias), expected, atol=1e-5)


def test_folds_have_a_fifth_of_every_class():
    labels = np.random.default_rng(0).choice(4, 203, p=[0.5, 0.3, 0.15, 0.05])
    folds = folds_of(np.eye(4)[labels])
    counts = np.array([np.bincount(labels[folds == fold], minlength=4) for fold in range(5)])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1
    np.testing.assert_array_equal(folds, folds_of(np.eye(4)[labels]))


def test_the_strength_has_the_lowest_log_loss_on_held_out_folds():
    views, labels = digits(100, views=2, classes=4)
    noise = np.random.default_rng(0).permutation(labels)
    for wrong, expected in ((labels, (3.0,)), (noise, (0.01,))):
        found = solve_softmax(
            features_of(views), np.eye(4)[wrong], np.ones(100), strengths=STRENGTHS
        )
        assert (found.strength,) == expected
    folds, losses = folds_of(np.eye(4)[labels]), []
    candidates = (0.03, 3.0, 300.0)
    for strength in candidates:
        losses.append(0.0)
        for fold in range(5):
            head = reference(views, labels, np.float64(folds != fold), strength)
            logits = views[folds == fold] @ head.kernel + head.bias
            true = labels[folds == fold]
            losses[-1] -= special.log_softmax(logits, axis=2)[np.arange(len(true)), :, true].sum()
    found = solve_softmax(features_of(views), np.eye(4)[labels], np.ones(100), strengths=candidates)
    assert found.strength == candidates[int(np.argmin(losses))]


def test_labels_are_binary_regressions_on_the_images_where_they_are_known():
    views, labels = digits(200, views=2)
    targets = np.stack([labels % 2, labels > 4, labels == 3], axis=1).astype(np.float32)
    targets[np.random.default_rng(0).random(targets.shape) < 0.3] = np.nan
    weights = np.random.default_rng(1).uniform(0.5, 2, targets.shape)
    found = solve_logistic(features_of(views), targets, weights, strengths=(0.05,))
    rows, scale = half(views)
    for column in range(3):
        known = np.repeat(~np.isnan(targets[:, column]), 2)
        model = LogisticRegression(C=0.05, tol=1e-9, max_iter=5000).fit(
            rows[known],
            np.repeat(targets[:, column], 2)[known],
            np.repeat(weights[:, column] / 2, 2)[known],
        )
        np.testing.assert_allclose(found.kernel[:, column] * scale, model.coef_[0], atol=1e-4)


@pytest.mark.parametrize("size", [40, 12])
def test_a_ridge_has_the_penalty_of_the_least_leave_one_out_error(size):
    views, labels = digits(size, views=3)
    views = views[..., 10:50]
    targets = np.stack([labels, views[:, 0, 10] + 2 * labels], axis=1).astype(np.float64)
    targets[[0, 3], 1] = np.nan
    penalties = (1.0, 30.0, 1000.0)
    found = solve_ridge(features_of(views), targets, penalties=penalties)
    chosen, least = [], []
    for column in range(2):
        known = np.flatnonzero(~np.isnan(targets[:, column]))
        rows, scale = half(views[known])
        blocks, values = rows.reshape(len(known), 3, -1), targets[known, column]
        errors = []
        for penalty in penalties:
            squares = 0.0
            for out in range(len(known)):
                rest = np.arange(len(known)) != out
                model = Ridge(alpha=3 * penalty).fit(
                    blocks[rest].reshape(-1, rows.shape[1]), np.repeat(values[rest], 3)
                )
                squares += np.mean((model.predict(blocks[out]) - values[out]) ** 2)
            errors.append(squares / len(known))
        best = int(np.argmin(errors))
        chosen.append(penalties[best])
        least.append(errors[best])
        model = Ridge(alpha=3 * penalties[best]).fit(rows, np.repeat(values, 3))
        np.testing.assert_allclose(found.kernel[:, column] * scale, model.coef_, atol=1e-6)
        np.testing.assert_allclose(
            views[known, 0] @ found.kernel[:, column] + found.bias[column],
            model.predict(blocks[:, 0]),
            rtol=1e-6,
        )
    assert found.strength == pytest.approx(np.median(chosen))
    assert found.loss == pytest.approx(np.mean(least), rel=1e-6)


def test_features_that_cannot_be_used_are_named(monkeypatch):
    views, labels = digits(30, views=2, dtype=np.float16)
    monkeypatch.setattr(ridge, "MOST_COLUMNS", 20)
    with pytest.raises(DataError, match="too many features"):
        solve_ridge(features_of(views), labels[:, None])
    views[7, 1, 3] = np.inf
    with pytest.raises(DataError, match="not finite"):
        solve_softmax(features_of(views), np.eye(10)[labels], np.ones(30))


def test_balanced_sampling_weighs_classes_and_smoothing_does_not_apply():
    views, labels = digits(60, classes=2)
    labels[::3] = 0
    task, features = SingleLabel(("a", "b")), features_of(views)
    balanced, weighted, plain, smoothed = (
        task.solve_head(features, labels, TrainingSpec(**change)).kernel
        for change in (
            {"sampling": "balanced"},
            {"class_weights": "balanced"},
            {},
            {"label_smoothing": 0.2},
        )
    )
    np.testing.assert_array_equal(balanced, weighted)
    np.testing.assert_array_equal(plain, smoothed)
    assert np.abs(balanced - plain).max() > 1e-3


def test_images_without_a_known_label_do_not_change_a_head():
    views, labels = digits(60)
    values = np.stack([labels % 2, labels > 4], axis=1).astype(np.float32)
    values[:5, 1] = np.nan
    task = MultiLabel(("odd", "large")).scaled(values)
    unknown = np.full((20, 2), np.nan, np.float32)
    more, _ = digits(80)
    more[:60] = views
    kernels = []
    for training in (TrainingSpec(), TrainingSpec(class_weights="balanced")):
        alone = task.solve_head(features_of(views), values, training)
        together = task.solve_head(features_of(more), np.concatenate([values, unknown]), training)
        np.testing.assert_allclose(alone.kernel, together.kernel, atol=1e-12)
        kernels.append(alone.kernel)
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


def test_a_constant_column_has_no_head():
    views, _ = digits(20)
    with pytest.raises(DataError, match="column 'height' of the training split"):
        Regression(("height",)).solve_head(
            features_of(views), np.ones((20, 1), np.float32), TrainingSpec()
        )
