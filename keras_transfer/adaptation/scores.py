"""What is known of an adaptation without labels of the target, and the choice between several."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import special
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from keras_transfer.adaptation.registry import UNLABELLED
from keras_transfer.evaluation.results import paired_gain

NUM_NEIGHBOURS: Final = 10
LEAST_ERRORS: Final = 2.0
"""Standard errors by which the neighbour information of a kind must exceed the run's."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores:
    """Of one kind on M target images; entropies are shares of log K, the highest.

    `entropy` is the mean entropy of predictions, `balance` the entropy of the mean prediction,
    `agreement` the share with the same class as the run's, and `information` [M] the
    `neighbour_information`. `labelled_loss` is the log loss on labelled target images, if given.
    """

    entropy: float
    balance: float
    agreement: float
    information: np.ndarray
    labelled_loss: float | None = None

    @property
    def neighbours(self) -> float:
        """The mean neighbour information."""
        return float(self.information.mean())


def nearest_rows(features: np.ndarray) -> np.ndarray:
    """Rows int64 [M, at most 10] of the nearest other rows, by features that vary alike."""
    deviations = features.std(axis=0)
    # As heads are solved: standardised by half, see `tasks.linear_head`.
    typical = deviations.mean() or 1.0
    scaled = features / np.sqrt((deviations + 0.1 * typical) * typical)
    number = min(NUM_NEIGHBOURS, len(features) - 1)
    with threadpool_limits(1, user_api="openmp"):
        search = NearestNeighbors(n_neighbors=number).fit(scaled)
        return np.asarray(search.kneighbors(return_distance=False))


def neighbour_information(labels: np.ndarray, nearest: np.ndarray, num_classes: int) -> np.ndarray:
    """Each image's share in the mutual information of its class and its neighbours' classes, [M].

    The mean is 1 for K classes of equal size whose images have neighbours of their own class only,
    and 0 where classes say nothing of the neighbours' ones, or all images have the same.

    Args:
        labels: predicted classes int64 [M].
        nearest: from `nearest_rows`.
        num_classes: K.
    """
    encoded = np.eye(num_classes)[labels]
    around = encoded[nearest].mean(axis=1)
    joint = encoded.T @ around / len(labels)
    joint = (joint + joint.T) / 2
    shares = joint.sum(axis=1)
    independent = np.outer(shares, shares)
    ratios = np.divide(joint, independent, out=np.ones_like(joint), where=joint > 0)
    return np.asarray((around * np.log(ratios)[labels]).sum(axis=1) / np.log(num_classes))


def entropies(outputs: np.ndarray) -> tuple[float, float]:
    """Mean entropy of probabilities [M, K], and the entropy of their mean, as shares of log K."""
    highest = np.log(outputs.shape[1])
    mean = special.entr(outputs).sum(axis=1).mean() / highest
    return float(mean), float(special.entr(outputs.mean(axis=0)).sum() / highest)


def log_loss(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Mean log loss of probabilities [N, K] in nats."""
    of_label = outputs[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean())


def choose(found: Mapping[str, Scores]) -> str:
    """The name of the kind to use; the first one is the run as it is.

    With labelled target images it is the one with the lowest log loss on them. Without, it is the
    one with the highest neighbour information, of those in `UNLABELLED` that have clearly more of
    it than the run.
    """
    first = next(iter(found))
    losses = {name: one.labelled_loss for name, one in found.items()}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    if known:
        return min(known, key=known.__getitem__)
    clear = {first: 0.0}
    for name in (name for name in UNLABELLED if name in found):
        gain = paired_gain(found[first].information, found[name].information)
        if gain.difference > LEAST_ERRORS * gain.standard_error:
            clear[name] = gain.difference
    return max(clear, key=clear.__getitem__)
