"""Self-training: the most confident target images of each class get the predicted class as label.

Zou et al. 2018, "Unsupervised Domain Adaptation for Semantic Segmentation via Class-Balanced
Self-Training": a share of the images that are predicted as a class is taken from every class, so
that classes with lower confidence are not left out; the share grows from round to round.
"""

from dataclasses import replace

import numpy as np

from keras_transfer.adaptation.domains import Domains

SHARES = (0.3, 0.6, 0.9)
"""Of the images of each predicted class, by round."""


def adapt(domains: Domains) -> Domains:
    """The head solved on source images and the confident target images, round by round."""
    weight = len(domains.source) / len(domains.target)
    for share in SHARES:
        rows, labels = pseudo_labels(domains.outputs(domains.target), share)
        head = domains.solved(
            np.concatenate([domains.source, domains.target[rows]]),
            np.concatenate([domains.labels, labels]),
            np.concatenate([domains.weights, np.full(len(rows), weight)]),
        )
        domains = replace(domains, kernel=head.kernel, bias=head.bias)
    return domains


def pseudo_labels(outputs: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the most confident share of each predicted class, at least one, and their classes.

    Args:
        outputs: probabilities [M, K].
    """
    labels, confidence = outputs.argmax(axis=1), outputs.max(axis=1)
    taken = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = max(1, round(share * len(rows)))
        taken.append(rows[np.argsort(-confidence[rows], kind="stable")[:count]])
    rows = np.sort(np.concatenate(taken))
    return rows, labels[rows]
