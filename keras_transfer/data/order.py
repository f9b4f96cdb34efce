"""Order: which example an epoch shows when and in which view, a pure function of (seed, epoch)."""

import numpy as np

_OCCURRENCE_STRIDE = 2**32
"""View numbers between two occurrences of a picture in one epoch: more than there are epochs."""


def epoch_order(
    labels: np.ndarray,
    epoch: int,
    *,
    num_classes: int,
    seed: int,
    sampling: str,
    num_views: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Which example an epoch shows when, and in which view: (places in `labels`, view numbers).

    'natural' is a permutation. 'balanced' draws every class equally often (±1) in an epoch of the
    same length: a class with too many examples shows some of them, one with too few goes round.
    The k-th occurrence of an example in the epoch is view `(epoch + k) mod num_views`; or view
    `epoch + 1 + k · 2^32` if there is no such number, so that no view is ever shown twice.

    Returns:
        Two int64 arrays of `len(labels)`.
    """
    generator = np.random.default_rng([seed, epoch])
    if sampling == "natural":
        places = generator.permutation(len(labels))
        occurrences = np.zeros(len(labels), np.int64)
    else:
        places, occurrences = _balanced_order(labels, num_classes, generator)
    if num_views is None:
        return places, epoch + 1 + _OCCURRENCE_STRIDE * occurrences
    return places, (epoch + occurrences) % num_views


def _balanced_order(
    labels: np.ndarray, num_classes: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Places that show every class equally often, and how often each was shown before."""
    counts = np.full(num_classes, len(labels) // num_classes)
    counts[generator.permutation(num_classes)[: len(labels) % num_classes]] += 1
    drawn = [
        _go_round(np.flatnonzero(labels == number), count, generator)
        for number, count in enumerate(counts)
    ]
    places, occurrences = (np.concatenate(column) for column in zip(*drawn, strict=True))
    shuffled = generator.permutation(len(labels))
    return places[shuffled], occurrences[shuffled]


def _go_round(
    members: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`count` draws from the members, in rounds without repetition, and the round of each."""
    numbers = np.arange(count)
    return generator.permutation(members)[numbers % len(members)], numbers // len(members)
