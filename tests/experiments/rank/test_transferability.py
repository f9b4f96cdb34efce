"""Transferability metrics against closed forms, slow references and a known order of features."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import kendalltau
from sklearn.covariance import ledoit_wolf
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keras_transfer.experiments.rank.transferability import (
    h_score,
    knn_hits,
    leep,
    log_me,
    nce,
    probe_hits,
)

NUM_CLASSES = 3


def make_features(num: int, width: int, *, rank: int | None = None, seed: int = 0):
    """Features of which some follow the labels, and the labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num) % NUM_CLASSES
    rank = rank or width
    core = generator.normal(size=(num, rank))
    core[:, : min(rank, NUM_CLASSES)] += 2 * np.eye(NUM_CLASSES)[labels][:, : min(rank, 3)]
    mixing = generator.normal(size=(rank, width)) if rank < width else np.eye(width)
    return core @ mixing, labels


def reference_evidence(features: np.ndarray, labels: np.ndarray) -> float:
    """The Gaussian log evidence by its full covariance, maximised by scipy from several starts."""
    gram, num = features @ features.T, len(labels)
    total = 0.0
    for label in range(NUM_CLASSES):
        target = (labels == label).astype(float)

        def loss(logs, target=target):
            covariance = np.exp(-logs[1]) * np.eye(num) + np.exp(-logs[0]) * gram
            energy = target @ np.linalg.solve(covariance, target)
            return (num * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + energy) / 2

        options = {"xatol": 1e-7, "fatol": 1e-9}
        starts = ([0.0, 2.0], [4.0, 4.0])
        results = [minimize(loss, x, method="Nelder-Mead", options=options) for x in starts]
        total -= min(result.fun for result in results)
    return total / NUM_CLASSES / num


@pytest.mark.parametrize(
    ("num", "width", "rank"), [(40, 6, None), (24, 60, None), (40, 12, 4), (24, 60, 5)]
)
def test_log_me_is_the_largest_gaussian_evidence(num, width, rank):
    features, labels = make_features(num, width, rank=rank)
    assert log_me(features, labels) == pytest.approx(reference_evidence(features, labels), abs=1e-5)


@pytest.mark.parametrize(("num", "width"), [(40, 6), (24, 60)])
def test_log_me_sees_neither_zero_columns_nor_rotations(num, width):
    features, labels = make_features(num, width)
    expected = log_me(features, labels)
    padded = np.hstack([features, np.zeros((num, 2 * num))])
    assert log_me(padded, labels) == pytest.approx(expected, abs=1e-9)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(width, width)))
    assert log_me(features @ rotation, labels) == pytest.approx(expected, abs=1e-9)
    assert log_me(features + 50, labels) != pytest.approx(expected, abs=1e-3)


def test_log_me_of_empty_features_is_that_of_no_regression():
    labels = np.arange(30) % NUM_CLASSES
    share = 1 / NUM_CLASSES
    expected = -(np.log(2 * np.pi * share) + 1) / 2
    assert log_me(np.zeros((30, 4)), labels) == pytest.approx(expected)
    generator = np.random.default_rng(0)
    assert log_me(generator.normal(size=(30, 4)) * 1e-3, labels) >= expected - 1e-9


def test_h_score_of_separated_classes_is_the_number_of_classes_less_one():
    labels = np.arange(90) % NUM_CLASSES
    generator = np.random.default_rng(0)
    apart = np.eye(NUM_CLASSES)[labels] + 1e-6 * generator.normal(size=(90, NUM_CLASSES))
    assert h_score(apart, labels, shrinkage=0) == pytest.approx(NUM_CLASSES - 1, abs=1e-3)
    for width in (2, 20, 200):
        features, _ = make_features(90, width)
        for shrinkage in (None, 0, 0.3):
            assert 0 <= h_score(features, labels, shrinkage=shrinkage) <= NUM_CLASSES - 1 + 1e-9
    assert h_score(np.ones((90, 4)), labels) == 0


def test_h_score_without_shrinkage_is_that_of_discriminant_analysis_and_of_any_linear_map():
    features, labels = make_features(90, 8)
    plain = h_score(features, labels, shrinkage=0)
    means = np.stack([features[labels == c].mean(axis=0) for c in labels])
    covariance, between = (np.cov(x.T, bias=True) for x in (features, means))
    assert plain == pytest.approx(np.trace(np.linalg.solve(covariance, between)))
    mapped = features @ np.random.default_rng(2).normal(size=(8, 8)) + 3
    assert h_score(mapped, labels, shrinkage=0) == pytest.approx(plain)
    # The regularised one is a function of the scale of each feature.
    assert h_score(mapped, labels) != pytest.approx(h_score(features, labels), rel=1e-3)
    assert LinearDiscriminantAnalysis().fit(features, labels).score(features, labels) > 0.8


@pytest.mark.parametrize(("num", "width"), [(90, 8), (30, 100)])
def test_regularised_h_score_takes_scikit_learns_shrinkage(num, width):
    features, labels = make_features(num, width)
    covariance, shrinkage = ledoit_wolf(features)
    assert 0 < shrinkage < 1
    means = np.stack([features[labels == c].mean(axis=0) for c in labels])
    between = np.cov(means.T, bias=True)
    expected = (1 - shrinkage) * np.trace(np.linalg.solve(covariance, between))
    assert h_score(features, labels) == pytest.approx(expected)


def test_shrinkage_keeps_noise_from_looking_perfect():
    noise = np.random.default_rng(0).normal(size=(60, 300))
    labels = np.arange(60) % NUM_CLASSES
    assert h_score(noise, labels, shrinkage=0) == pytest.approx(NUM_CLASSES - 1)
    assert h_score(noise, labels) < 0.15 * (NUM_CLASSES - 1)


def make_answers(num: int = 60, num_source: int = 7, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = np.arange(num) % NUM_CLASSES
    logits = generator.normal(size=(num, num_source)) + 2 * np.eye(num_source)[labels]
    exponents = np.exp(logits)
    return exponents / exponents.sum(axis=1, keepdims=True), labels


def test_leep_of_answers_that_say_nothing_is_minus_the_entropy_of_labels():
    labels = np.array([0] * 30 + [1] * 20 + [2] * 10)
    shares = np.bincount(labels) / len(labels)
    entropy = -np.sum(shares * np.log(shares))
    assert leep(np.full((60, 9), 1 / 9), labels) == pytest.approx(-entropy, abs=1e-12)
    assert nce(np.zeros(60, int), labels) == pytest.approx(-entropy, abs=1e-12)


def test_leep_of_hard_answers_is_nce():
    answers, labels = make_answers()
    hard = answers.argmax(axis=1)
    assert leep(np.eye(7)[hard], labels) == pytest.approx(nce(hard, labels), abs=1e-12)
    assert -np.log(NUM_CLASSES) < nce(hard, labels) < -0.1


def test_leep_is_negative_and_knows_no_order_of_source_classes():
    answers, labels = make_answers()
    value = leep(answers, labels)
    assert -np.log(NUM_CLASSES) < value < 0
    order = np.random.default_rng(1).permutation(7)
    assert leep(answers[:, order], labels) == pytest.approx(value, abs=1e-12)
    assert leep(answers, labels + 5) == pytest.approx(value, abs=1e-12)


def test_leep_bears_a_source_class_that_nobody_is_given():
    answers, labels = make_answers()
    with_empty = np.insert(answers, 3, 0.0, axis=1)
    assert leep(with_empty, labels) == pytest.approx(leep(answers, labels), abs=1e-12)


@pytest.mark.parametrize("width", [8, 150])
def test_hits_are_those_of_estimators_that_never_saw_the_fold(width):
    features, labels = make_features(90, width)
    folds = np.zeros(90, int)
    for number, (_, out) in enumerate(StratifiedKFold(5).split(features, labels)):
        folds[out] = number
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    hits = probe_hits(features, labels, folds)
    for fold in range(5):
        probe.fit(features[folds != fold].astype(np.float32), labels[folds != fold])
        out = folds == fold
        score = accuracy_score(labels[out], probe.predict(features[out]))
        assert hits[out].mean() == pytest.approx(score)
    assert hits.mean() > (0.7 if width == 8 else 0.4)
    # A copy in its own fold would make every neighbour right.
    copies = np.vstack([features, features])
    twice, both = np.tile(labels, 2), np.tile(folds, 2)
    assert knn_hits(copies, twice, both, neighbours=1).mean() < 1
    apart = np.repeat([0, 1], 90)
    assert knn_hits(copies, twice, apart, neighbours=1).all()


@pytest.mark.parametrize("width", [3, 300])
def test_dead_features_are_worth_no_more_than_the_commonest_class(width):
    labels = np.array([0] * 30 + [1] * 20)
    folds, dead = np.arange(50) % 5, np.zeros((50, width), np.float32)
    assert probe_hits(dead, labels, folds).mean() == pytest.approx(0.6)
    assert knn_hits(dead, labels, folds, neighbours=5).shape == (50,)
    assert h_score(dead, labels) == 0


def test_neighbours_go_by_direction_and_are_no_more_than_there_are():
    labels = np.arange(40) % 2
    angle = np.where(labels, 0.2, 1.2)
    lengths = np.random.default_rng(0).uniform(1, 1000, size=40)
    features = np.stack([lengths * np.cos(angle), lengths * np.sin(angle)], axis=1)
    folds = np.arange(40) // 2 % 2
    assert knn_hits(features, labels, folds, neighbours=5).all()
    assert knn_hits(features, labels, folds, neighbours=500).shape == (40,)


def make_feature_sets(seed: int = 0):
    """Twelve kinds of features of handwritten digits, from good to worthless, and the labels."""
    generator = np.random.default_rng(seed)
    pixels, labels = load_digits(return_X_y=True)
    order = generator.permutation(len(pixels))
    pixels, labels = pixels[order] / 16, labels[order]
    num = len(pixels)
    shuffled = generator.permuted(pixels, axis=0)
    sets = {
        "pixels": pixels,
        "pca 2": PCA(2).fit_transform(pixels),
        "pca 5": PCA(5).fit_transform(pixels),
        "pca 10": PCA(10).fit_transform(pixels),
        "pca 30": PCA(30).fit_transform(pixels),
        "projected 4": pixels @ generator.normal(size=(64, 4)),
        "projected 16": pixels @ generator.normal(size=(64, 16)),
        "random relu 512": np.maximum(0, pixels @ generator.normal(size=(64, 512))),
        "noisy pixels": pixels + generator.normal(size=pixels.shape),
        "upper half": pixels[:, :32],
        "half shuffled": np.hstack([pixels[:, :16], shuffled[:, 16:]]),
        "noise": generator.normal(size=(num, 2048)),
    }
    return sets, labels


def test_metrics_order_features_of_digits_and_put_noise_last():
    sets, labels = make_feature_sets()
    few = slice(0, 100)
    folds = np.arange(100) % 5
    metrics: dict[str, list[float]] = {"log_me": [], "h_score": [], "knn": [], "probe": []}
    held_out = []
    for features in sets.values():
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        probe.fit(features[few], labels[few])
        held_out.append(probe.score(features[100:], labels[100:]))
        mine, theirs = features[few], labels[few]
        metrics["log_me"].append(log_me(mine, theirs))
        metrics["h_score"].append(h_score(mine, theirs))
        metrics["knn"].append(knn_hits(mine, theirs, folds, neighbours=5).mean())
        metrics["probe"].append(probe_hits(mine, theirs, folds).mean())
    for name in ("log_me", "knn", "probe"):
        assert list(sets)[int(np.argmin(metrics[name]))] == "noise", name
        assert kendalltau(metrics[name], held_out).statistic >= 0.7, name
    # It is at most the number of features, so narrow ones end below noise.
    assert metrics["h_score"][list(sets).index("noise")] > metrics["h_score"][1]
