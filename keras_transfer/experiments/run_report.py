"""Writes history.csv, predictions.csv and the figures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from keras_transfer.data.datasets import Examples, Views
from keras_transfer.data.records import Records
from keras_transfer.data.splits import Splits
from keras_transfer.evaluation.metrics import SingleLabelEvaluation
from keras_transfer.evaluation.plots import (
    Mistake,
    draw_confusion,
    draw_learning_curves,
    draw_mistakes,
    draw_views,
)
from keras_transfer.evaluation.predictions import (
    most_confident_mistakes,
    prediction_columns,
    prediction_rows,
)
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.training.fitting import Outcome

HISTORY_COLUMNS: Final = (
    "phase",
    "epoch",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "learning_rate",
    "seconds",
)
NUM_IMAGES, NUM_VIEWS = 6, 6
"""Rows and columns of views.png at most, the plain image included."""


def write_history(run: RunFolder, outcomes: Sequence[Outcome]) -> None:
    """Write history.csv, a row for each epoch, and the learning curves; epochs count from 1."""
    history: list[dict[str, Any]] = []
    for outcome in outcomes:
        for row in outcome.history:
            history.append({"phase": outcome.name, "epoch": len(history) + 1, **row})
    rows = ([row[name] for name in HISTORY_COLUMNS] for row in history)
    run.write_rows("history.csv", HISTORY_COLUMNS, rows)
    with run.replacing("figures/learning_curves.png") as path:
        draw_learning_curves(history, path)


def write_views(
    run: RunFolder, spec: RunSpec, records: Records, splits: Splits, examples: Examples
) -> None:
    """Draw views of some training images into the run's figures."""
    with run.replacing("figures/views.png") as path:
        draw_some_views(path, spec, records, splits, examples)


def draw_some_views(
    file: Path, spec: RunSpec, records: Records, splits: Splits, examples: Examples
) -> None:
    """Draw views of some training images, spread over the split."""
    places = np.linspace(0, len(splits.train) - 1, NUM_IMAGES).round().astype(int)
    rows = splits.train[np.unique(places)]
    numbers = np.arange(min(spec.views.count or NUM_VIEWS, NUM_VIEWS))
    views = Views(examples, spec.views).read(
        np.repeat(rows, len(numbers)), np.tile(numbers, len(rows))
    )
    views = views.reshape(len(rows), len(numbers), *views.shape[1:])
    draw_views(views, [records.items[row].label for row in rows], file)


def write_test(
    run: RunFolder,
    records: Records,
    rows: np.ndarray,
    examples: Examples,
    *,
    test: SingleLabelEvaluation,
    probabilities: np.ndarray,
) -> None:
    """Write predictions.csv, the confusion matrix and the most confident mistakes.

    Args:
        rows: the test split's.
        probabilities: [len(rows), C].
    """
    labels, names = examples.labels[rows], records.class_names
    paths = (records.items[row].path for row in rows)
    run.write_rows(
        "predictions.csv",
        prediction_columns(names),
        prediction_rows(paths, labels, probabilities, names),
    )
    with run.replacing("figures/confusion.png") as path:
        draw_confusion(test.confusion, names, path)
    mistakes = [
        Mistake(
            pixels=examples.pixels[rows[place]],
            label=names[labels[place]],
            prediction=names[int(probabilities[place].argmax())],
            confidence=float(probabilities[place].max()),
        )
        for place in most_confident_mistakes(labels, probabilities)
    ]
    num_wrong = int(np.sum(probabilities.argmax(axis=1) != labels))
    with run.replacing("figures/mistakes.png") as path:
        draw_mistakes(mistakes, path, num_wrong=num_wrong, num_examples=len(rows))
