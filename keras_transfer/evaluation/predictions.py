"""Predictions of single images: the rows of `predictions.csv` and the most confident mistakes."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def label_columns(class_names: Sequence[str], *, labelled: bool = False) -> list[str]:
    """The header of `label_row`."""
    figures = probability_columns(class_names)
    if labelled:
        return ["label", "prediction", "confidence", "correct", *figures]
    return ["prediction", "confidence", *figures]


def probability_columns(class_names: Sequence[str]) -> list[str]:
    """Column names of the probabilities; prefixed, because a class may be called 'path'."""
    return [f"probability_{name}" for name in class_names]


def label_row(
    probabilities: np.ndarray, class_names: Sequence[str], label: int | None = None
) -> list[Any]:
    """Prediction, confidence and all probabilities [C] of one image.

    `confidence` is the predicted class's probability. With a true label the row begins with it,
    and `correct`, 1 or 0, follows the confidence. Probabilities are float32, which print with as
    many digits as it takes to read the same value back.
    """
    values = probabilities.astype(np.float32)
    prediction = int(values.argmax())
    predicted: list[Any] = [class_names[prediction], values[prediction]]
    if label is None:
        return [*predicted, *values]
    return [class_names[label], *predicted, int(prediction == label), *values]


def most_confident_mistakes(
    labels: np.ndarray, probabilities: np.ndarray, *, limit: int = 24
) -> np.ndarray:
    """Rows of the wrong predictions, the most confident first; at most `limit`."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    confidence = probabilities[wrong].max(axis=1)
    return wrong[np.argsort(-confidence, kind="stable")][:limit]
