"""Scores of features: every metric with its interval, and the scores of a control without signal.

The control is noise with as many features as the widest candidate. For metrics of source
predictions it is the predictions of a candidate, assigned to the wrong images. A metric that ranks
the control above a candidate does not separate good from bad candidates on these images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import t as student

from keras_transfer.evaluation.intervals import Interval, wilson
from keras_transfer.experiments.rank.transferability import (
    h_score,
    knn_hits,
    leep,
    log_me,
    nce,
    probe_hits,
)

METRICS: Final = {
    "probe": "linear probe",
    "knn": "k-NN",
    "log_me": "LogME",
    "h_score": "H-score",
    "leep": "LEEP",
    "nce": "NCE",
}
"""Names and titles; a higher value is better in all of them."""

SHARES: Final = ("probe", "knn")
"""The metrics that are cross-validated accuracies."""

_NUM_HALVES = 8
_LARGEST_HALF = 1000


@dataclass(frozen=True)
class Score:
    """A metric's value and its 95 % interval, None if it has none."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The setting for all features: labels int [N], folds int [N] in which an image is held out.

    `neighbours` is the k of k-NN.
    """

    labels: np.ndarray
    folds: np.ndarray
    neighbours: int
    seed: int


def score(
    features: np.ndarray, setting: CrossValidation, *, source: np.ndarray | None = None
) -> tuple[dict[str, Score], dict[str, np.ndarray]]:
    """All metrics of features float [N, D], and which images probe and k-NN classify correctly.

    Args:
        source: probabilities of a source classifier, [N, Z]; without them there is no LEEP and NCE.
    """
    hits = find_hits(features, setting)
    # Wilson's: a bootstrap gives an interval of no width if all images are classified correctly.
    scores = {
        name: Score(float(own.mean()), wilson(int(own.sum()), len(own)))
        for name, own in hits.items()
    }
    for name, metric in (("log_me", log_me), ("h_score", h_score)):
        value = metric(features, setting.labels)
        half = interval_over_halves(metric, features, setting.labels, seed=setting.seed)
        scores[name] = Score(value, (value - half, value + half))
    if source is not None:
        scores["leep"] = Score(leep(source, setting.labels))
        scores["nce"] = Score(nce(source.argmax(axis=1), setting.labels))
    return scores, hits


def find_hits(features: np.ndarray, setting: CrossValidation) -> dict[str, np.ndarray]:
    """Whether each image is classified correctly while held out, bool [N] by metric."""
    labels, folds = setting.labels, setting.folds
    return {
        "probe": probe_hits(features, labels, folds),
        "knn": knn_hits(features, labels, folds, neighbours=setting.neighbours),
    }


def score_control(
    width: int, setting: CrossValidation, *, sources: Sequence[np.ndarray]
) -> dict[str, float]:
    """All metrics of noise; the best LEEP and NCE of all `sources` in a wrong order.

    Args:
        width: number of noise features, that of the widest candidate.
    """
    generator = np.random.default_rng([setting.seed, 7])
    noise = generator.normal(size=(len(setting.labels), width)).astype(np.float32)
    values = {name: float(hits.mean()) for name, hits in find_hits(noise, setting).items()}
    values["log_me"] = log_me(noise, setting.labels)
    values["h_score"] = h_score(noise, setting.labels)
    if sources:
        orders = [generator.permuted(np.arange(len(one))) for one in sources]
        wrong = [one[order] for one, order in zip(sources, orders, strict=True)]
        values["leep"] = max(leep(one, setting.labels) for one in wrong)
        values["nce"] = max(nce(one.argmax(axis=1), setting.labels) for one in wrong)
    return values


def interval_over_halves(
    metric: Callable[[np.ndarray, np.ndarray], float],
    features: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
) -> float:
    """Half the width of a 95 % interval, from a metric's variation over halves of the images.

    A bootstrap draws some images twice, and evidence and H-score of samples with copies are too
    high, by far more than the width of the interval. Stratified halves without replacement have no
    copies, and the variance of a mean over them equals that over samples of all images:
    (1/m - 1/N) = 1/N for m = N/2. Of more than 2,000 images a smaller share is drawn, and the
    variation is scaled down.

    Source: D. N. Politis, J. P. Romano and M. Wolf, "Subsampling", Springer 1999.
    """
    generator = np.random.default_rng([seed, 3])
    num = len(labels)
    step = max(2, -(-num // _LARGEST_HALF))
    values = []
    for number in range(_NUM_HALVES):
        # In order of class, so that every second one makes a stratified half.
        order = np.lexsort((generator.random(num), labels))
        rows = order[number % step :: step]
        values.append(metric(features[rows], labels[rows]))
    scale = np.sqrt(len(rows) / (num - len(rows)))
    return float(student.ppf(0.975, _NUM_HALVES - 1) * np.std(values, ddof=1) * scale)


def find_unreliable(
    control: Mapping[str, float], scores: Mapping[str, Mapping[str, Score]]
) -> tuple[dict[str, list[str]], list[str]]:
    """Metrics that rank the control at or above candidates, and candidates no better than it.

    A candidate that most metrics rank below the control is itself no better than noise. It is
    returned separately and does not make a metric unreliable.

    Args:
        scores: by candidate and metric.

    Returns:
        By metric the names of the candidates that it should have ranked above the control; and
        the candidates that are no better than noise.
    """
    below = {
        name: [metric for metric, own in scored.items() if own.value <= control[metric]]
        for name, scored in scores.items()
    }
    worthless = [name for name, metrics in below.items() if 2 * len(metrics) > len(scores[name])]
    unreliable = {
        metric: [name for name in below if metric in below[name] and name not in worthless]
        for metric in control
    }
    return {metric: names for metric, names in unreliable.items() if names}, worthless
