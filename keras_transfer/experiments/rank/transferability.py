"""Transferability metrics: from pooled features and labels, how well the features fit the task.

Features are float [N, D], labels int [N] with values from 0. Higher is better for all of them.
None is best on all data: A. Agostinelli et al., "How stable are transferability metrics
evaluations?", ECCV 2022; M. Sorkhei et al., "k-NN as a simple and effective estimator of
transferability", 2025, where none of 23 is better than nearest neighbours in all cases.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

_DECADES = np.linspace(-12.0, 12.0, 97)
"""Ratios of noise to prior that are tried first, as powers of ten of the largest energy."""

_FINER = np.linspace(-1.0, 1.0, 17)
_NUM_REFINEMENTS = 6


def log_me(features: np.ndarray, labels: np.ndarray) -> float:
    """LogME: the evidence of a Bayesian linear regression, for each label against the rest.

    For a target t of zeros and ones it is the largest log N(t; 0, I/beta + F F'/alpha) over alpha
    and beta; the mean over all targets, for each example. For a given ratio alpha/beta the best
    beta is known in closed form, so only the ratio is searched, on a grid that is refined around
    its best point: unlike the usual fixed-point iteration, this neither converges slowly nor ends
    in the lower of two maxima. Columns of zeros change nothing.

    Source: K. You et al., "LogME: practical assessment of pre-trained models for transfer
    learning", ICML 2021.
    """
    basis, energies = _spectrum(np.asarray(features, np.float64))
    evidences = []
    for label in np.unique(labels):
        target = (labels == label).astype(np.float64)
        projected = (basis.T @ target) ** 2
        # The part outside the span of the features; rounding must not make it negative.
        rest = max(float(target.sum() - projected.sum()), 0.0)
        evidences.append(_evidence(energies, projected, rest, len(labels)))
    return float(np.mean(evidences)) / len(labels)


def _spectrum(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors [N, k] and squared singular values [k], without numerical zeros."""
    num_examples, num_features = features.shape
    if num_examples > num_features:
        basis, values, _ = np.linalg.svd(features, full_matrices=False)
        energies = values**2
    else:
        # The same vectors if there are at most as many examples, four times as fast.
        energies, basis = np.linalg.eigh(features @ features.T)
    kept = energies > max(features.shape) * np.finfo(np.float64).eps * energies.max()
    return basis[:, kept], energies[kept]


def _evidence(energies: np.ndarray, projected: np.ndarray, rest: float, num: int) -> float:
    """The largest log evidence of one target over both of its precisions."""

    def at(ratios: np.ndarray) -> np.ndarray:
        shares = energies / ratios[:, None]
        misfit = np.sum(projected / (1 + shares), axis=1) + rest
        spread = np.sum(np.log1p(shares), axis=1)
        return -(num * np.log(2 * np.pi * misfit / num) + num + spread) / 2

    if not len(energies):
        return float(at(np.ones(1))[0])
    scale = energies.max()
    # The last is the limit in which the features are not used.
    powers, step = np.append(_DECADES, 300.0), float(_DECADES[1] - _DECADES[0])
    for _ in range(1 + _NUM_REFINEMENTS):
        values = at(scale * 10**powers)
        best = powers[values.argmax()]
        powers, step = best + step * _FINER, step * float(_FINER[1] - _FINER[0])
    return float(values.max())


def h_score(features: np.ndarray, labels: np.ndarray, *, shrinkage: float | None = None) -> float:
    """H-score: the share of the features' variance that is between the classes, 0 to C - 1.

    The trace of inverse(cov(f)) cov(mean of f given y). With `shrinkage` rho the covariance is
    mixed with rho times its mean variance, and the result is multiplied by 1 - rho; None takes
    Ledoit and Wolf's rho. With 0 it is the original H-score, which is invariant under invertible
    linear maps, and C - 1 for any features that are as many as the examples.

    Source: Y. Bao et al., "An information-theoretic approach to transferability in task transfer
    learning", ICIP 2019; regularised: S. Ibrahim et al., "Newer is not always better: rethinking
    transferability metrics", ECML 2022; rho: O. Ledoit and M. Wolf, J. Multivar. Anal. 88 (2004).
    """
    centred = np.asarray(features, np.float64)
    centred = centred - centred.mean(axis=0)
    num_examples, num_features = centred.shape
    basis, energies = _spectrum(centred)
    if not len(energies):
        return 0.0
    variances = energies / num_examples
    if shrinkage is None:
        lengths = np.sum(centred**2, axis=1)
        shrinkage = _ledoit_wolf(lengths, variances, num_features)
    floor = shrinkage * variances.sum() / num_features
    scores = basis * np.sqrt(energies)
    between = sum(
        np.mean(labels == label) * scores[labels == label].mean(axis=0) ** 2
        for label in np.unique(labels)
    )
    return float((1 - shrinkage) * np.sum(between / ((1 - shrinkage) * variances + floor)))


def _ledoit_wolf(lengths: np.ndarray, variances: np.ndarray, num_features: int) -> float:
    """The shrinkage from squared lengths [N] of centred examples and the covariance's spectrum.

    The same as scikit-learn's, without a matrix of D x D.
    """
    squares = float(np.sum(variances**2))
    spread = squares - float(variances.sum()) ** 2 / num_features
    noise = (float(np.mean(lengths**2)) - squares) / len(lengths)
    return min(noise, spread) / spread if spread > 0 else 0.0


def leep(source_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """LEEP: the mean log likelihood of labels given a source classifier's predictions, at most 0.

    The mean over examples of log sum over z of P(y|z) theta(z), where P(y|z) is counted with the
    predictions theta float [N, Z], rows adding up to 1, as weights. A class without any weight
    is left out: it adds nothing.

    Source: C. V. Nguyen et al., "LEEP: a new measure to evaluate transferability of learned
    representations", ICML 2020.
    """
    theta = np.asarray(source_probabilities, np.float64)
    theta = theta[:, theta.sum(axis=0) > 0]
    joint = np.stack([theta[labels == label].sum(axis=0) for label in np.unique(labels)])
    conditional = joint / joint.sum(axis=0)
    numbers = np.unique(labels, return_inverse=True)[1]
    return float(np.mean(np.log(np.sum(conditional[numbers] * theta, axis=1))))


def nce(source_labels: np.ndarray, labels: np.ndarray) -> float:
    """NCE: minus the entropy in nats of labels, given the source classifier's hard labels [N].

    Source: A. T. Tran et al., "Transferability and hardness of supervised classification tasks",
    ICCV 2019.
    """
    pairs = np.stack([source_labels, labels])
    _, place, counts = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    _, source, totals = np.unique(source_labels, return_inverse=True, return_counts=True)
    return float(np.mean(np.log(counts[np.ravel(place)] / totals[source])))


def knn_hits(
    features: np.ndarray, labels: np.ndarray, folds: np.ndarray, *, neighbours: int
) -> np.ndarray:
    """Whether the k nearest of other folds, by cosine, classify each example correctly.

    Args:
        folds: int [N], the fold in which each example is held out.
        neighbours: k; fewer where the other folds have fewer examples.
    """
    vectors: np.ndarray = np.asarray(features, np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    # Between vectors of length one Euclidean neighbours are those of largest cosine.
    vectors = vectors / np.where(lengths > 0, lengths, 1)
    hits = np.zeros(len(labels), bool)
    for fold in np.unique(folds):
        out = folds == fold
        k = min(neighbours, int(np.sum(~out)))
        voters = KNeighborsClassifier(k, algorithm="brute").fit(vectors[~out], labels[~out])
        hits[out] = voters.predict(vectors[out]) == labels[out]
    return hits


def probe_hits(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Whether a logistic regression on the other folds classifies each example correctly.

    Features are standardised with the other folds' mean and deviation. Returns bool [N].

    Args:
        folds: int [N], the fold in which each example is held out.

    Source: S. Kornblith et al., "Do better ImageNet models transfer better?", CVPR 2019.
    """
    hits = np.zeros(len(labels), bool)
    for fold in np.unique(folds):
        out = folds == fold
        scaler = StandardScaler().fit(features[~out])
        train, test = _narrowed(*(scaler.transform(features[rows]) for rows in (~out, out)))
        probe = LogisticRegression(solver="newton-cg", max_iter=200).fit(train, labels[~out])
        hits[out] = probe.predict(test) == labels[out]
    return hits


def _narrowed(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in coordinates of the space that the training examples span, if that is smaller.

    A regression with an L2 penalty has no weights outside of that space and is invariant under
    rotations: predictions stay the same, and the optimisation has fewer dimensions.
    """
    if train.shape[1] <= len(train):
        return train, test
    basis, energies = _spectrum(np.asarray(train, np.float64))
    if not len(energies):
        return train, test
    axes = train.T @ (basis / np.sqrt(energies))
    return train @ axes, test @ axes
