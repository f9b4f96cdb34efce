"""Rows of predictions, and which mistakes come first."""

import numpy as np
import pytest

from keras_transfer.evaluation.predictions import (
    most_confident_mistakes,
    prediction_columns,
    prediction_rows,
)

NAMES = ["ant", "bee", "cat"]
PROBABILITIES = np.float32(
    [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.0, 0.9], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1]]
)


def test_prediction_rows_fit_their_columns():
    rows = list(prediction_rows("abcde", np.array([0, 1, 1, 1, 0]), PROBABILITIES, NAMES))
    assert prediction_columns(NAMES) == [
        "path",
        "label",
        "prediction",
        "confidence",
        "correct",
        "probability_ant",
        "probability_bee",
        "probability_cat",
    ]
    assert rows[0] == ["a", "ant", "ant", 0.7, 1, 0.7, 0.2, 0.1]
    assert rows[2] == ["c", "bee", "cat", 0.9, 0, 0.1, 0.0, 0.9]
    assert [row[4] for row in rows] == [1, 0, 0, 1, 0]


def test_prediction_rows_read_back_as_the_same_float32():
    exact = np.float32([[1 / 3, 2 / 3]])
    row = next(prediction_rows(["x"], np.array([0]), exact, ["a", "b"]))
    np.testing.assert_array_equal(np.float32(row[5:]), exact[0])


def test_prediction_rows_refuse_lists_of_different_length():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        list(prediction_rows("ab", np.array([0]), PROBABILITIES, NAMES))


def test_most_confident_mistakes_come_first():
    labels = np.array([0, 1, 1, 1, 0])
    assert most_confident_mistakes(labels, PROBABILITIES).tolist() == [2, 4, 1]
    assert most_confident_mistakes(labels, PROBABILITIES, limit=1).tolist() == [2]
    assert most_confident_mistakes(PROBABILITIES.argmax(1), PROBABILITIES).tolist() == []
