"""Predictions one by one: the rows of `predictions.csv` and the mistakes worth looking at."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np


def prediction_columns(class_names: Sequence[str]) -> list[str]:
    """The header of `prediction_rows`."""
    figures = probability_columns(class_names)
    return ["path", "label", "prediction", "confidence", "correct", *figures]


def probability_columns(class_names: Sequence[str]) -> list[str]:
    """Column names of the probabilities; prefixed, for a class may be called 'path'."""
    return [f"probability_{name}" for name in class_names]


def prediction_rows(
    paths: Iterable[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> Iterator[list[str | float]]:
    """One row an image: what it is, what it was taken for, and all probabilities [N, C].

    `confidence` is the predicted class's probability, `correct` is 1 or 0. Probabilities have
    as many digits as it takes to read the same float32 back.
    """
    for path, label, row in zip(paths, labels, probabilities.astype(np.float32), strict=True):
        prediction = int(row.argmax())
        shortest = [float(str(value)) for value in row]
        names = [class_names[label], class_names[prediction]]
        yield [path, *names, shortest[prediction], int(prediction == label), *shortest]


def most_confident_mistakes(
    labels: np.ndarray, probabilities: np.ndarray, *, limit: int = 24
) -> np.ndarray:
    """Rows of the wrong predictions, the most confident first; at most `limit`."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    confidence = probabilities[wrong].max(axis=1)
    return wrong[np.argsort(-confidence, kind="stable")][:limit]
