"""Scores of features: every metric with its interval, and those of a control that knows nothing.

The control is noise as wide as the widest candidate; for metrics of the source's answers, the
answers of one candidate dealt out to the wrong images. A metric that puts the control above a
candidate does not tell good from bad on these images.
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
"""Those that are accuracies, of images held out in turn."""

_NUM_HALVES = 8
_LARGEST_HALF = 1000


@dataclass(frozen=True)
class Score:
    """A metric's value and its 95 % interval, None where none was taken."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True, eq=False)
class Judged:
    """What all features are judged on: labels int [N], the fold each image is held out in."""

    labels: np.ndarray
    folds: np.ndarray
    neighbours: int
    seed: int


def score(
    features: np.ndarray, judged: Judged, *, answers: np.ndarray | None = None
) -> tuple[dict[str, Score], dict[str, np.ndarray]]:
    """All metrics of features float [N, D], and which images probe and neighbours name right.

    Args:
        answers: of a source classifier, [N, Z]; LEEP and NCE are left out without them.
    """
    hits = find_hits(features, judged)
    # Wilson's, because a bootstrap of images that are all named right knows no doubt.
    scores = {
        name: Score(float(own.mean()), wilson(int(own.sum()), len(own)))
        for name, own in hits.items()
    }
    for name, metric in (("log_me", log_me), ("h_score", h_score)):
        value = metric(features, judged.labels)
        half = spread_over_halves(metric, features, judged.labels, seed=judged.seed)
        scores[name] = Score(value, (value - half, value + half))
    if answers is not None:
        scores["leep"] = Score(leep(answers, judged.labels))
        scores["nce"] = Score(nce(answers.argmax(axis=1), judged.labels))
    return scores, hits


def find_hits(features: np.ndarray, judged: Judged) -> dict[str, np.ndarray]:
    """Whether each image is named right while it is held out, bool [N] by metric."""
    labels, folds = judged.labels, judged.folds
    return {
        "probe": probe_hits(features, labels, folds),
        "knn": knn_hits(features, labels, folds, neighbours=judged.neighbours),
    }


def score_control(width: int, judged: Judged, *, answers: Sequence[np.ndarray]) -> dict[str, float]:
    """All metrics of noise; LEEP and NCE of each of `answers` in a wrong order, the best of them.

    Args:
        width: number of noise features, that of the widest candidate.
    """
    generator = np.random.default_rng([judged.seed, 7])
    noise = generator.normal(size=(len(judged.labels), width)).astype(np.float32)
    values = {name: float(hits.mean()) for name, hits in find_hits(noise, judged).items()}
    values["log_me"] = log_me(noise, judged.labels)
    values["h_score"] = h_score(noise, judged.labels)
    if answers:
        dealt = [generator.permuted(np.arange(len(one))) for one in answers]
        wrong = [one[order] for one, order in zip(answers, dealt, strict=True)]
        values["leep"] = max(leep(one, judged.labels) for one in wrong)
        values["nce"] = max(nce(one.argmax(axis=1), judged.labels) for one in wrong)
    return values


def spread_over_halves(
    metric: Callable[[np.ndarray, np.ndarray], float],
    features: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
) -> float:
    """Half the width of a 95 % interval, from a metric's scatter over halves of the images.

    The bootstrap draws images twice. A copy is explained by its original, so evidence and
    H-score of such samples are too high, by far more than their interval is wide. Stratified
    halves without replacement hold no copies, and a mean scatters over them as much as over
    samples of all images: (1/m - 1/N) = 1/N for m = N/2. Of more than 2,000 images a smaller
    share is drawn, and the scatter scaled down.

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


def doubt(
    control: Mapping[str, float], scores: Mapping[str, Mapping[str, Score]]
) -> tuple[dict[str, list[str]], list[str]]:
    """Metrics that put the control level with candidates or above, and candidates to blame.

    A candidate that most metrics put below the control is itself worth no more than noise: it is
    named, and is no reason to doubt the metrics that say so.

    Args:
        scores: by candidate and metric.

    Returns:
        By metric the names of the candidates that it should have put above the control; and the
        candidates that know no more than noise.
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
