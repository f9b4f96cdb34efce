"""Rows of predictions, and which mistakes come first."""

import numpy as np

from keras_transfer.evaluation.predictions import (
    label_columns,
    label_row,
    most_confident_mistakes,
)

NAMES = ["ant", "bee", "cat"]
PROBABILITIES = np.float32(
    [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.0, 0.9], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1]]
)


def test_rows_fit_their_columns():
    labels = [0, 1, 1, 1, 0]
    rows = [label_row(*pair) for pair in zip(PROBABILITIES, [NAMES] * 5, labels, strict=True)]
    columns = label_columns(NAMES, labelled=True)
    assert columns[:4] == ["label", "prediction", "confidence", "correct"]
    assert columns[4:] == ["probability_ant", "probability_bee", "probability_cat"]
    assert rows[0][:2] == ["ant", "ant"]
    assert [str(cell) for cell in rows[2]] == ["bee", "cat", "0.9", "0", "0.1", "0.0", "0.9"]
    assert [row[3] for row in rows] == [1, 0, 0, 1, 0]


def test_a_row_without_a_label_begins_with_the_prediction():
    row = label_row(PROBABILITIES[2], NAMES)
    assert dict(zip(label_columns(NAMES), row, strict=True))["prediction"] == "cat"
    assert len(row) == 5


def test_rows_read_back_as_the_same_float32():
    exact = np.float32([1 / 3, 2 / 3])
    row = label_row(exact, ["a", "b"], 0)
    np.testing.assert_array_equal(np.float32([str(cell) for cell in row[4:]]), exact)


def test_most_confident_mistakes_come_first():
    labels = np.array([0, 1, 1, 1, 0])
    assert most_confident_mistakes(labels, PROBABILITIES).tolist() == [2, 4, 1]
    assert most_confident_mistakes(labels, PROBABILITIES, limit=1).tolist() == [2]
    assert most_confident_mistakes(PROBABILITIES.argmax(1), PROBABILITIES).tolist() == []
