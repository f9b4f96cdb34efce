"""Writes history.csv, predictions.csv and the figures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_transfer.data.datasets import Examples, Views
from keras_transfer.data.images import shown
from keras_transfer.data.records import Records
from keras_transfer.data.splits import Splits
from keras_transfer.evaluation.plots import draw_learning_curves, draw_views
from keras_transfer.evaluation.results import Evaluation
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.task import Task
from keras_transfer.training.fitting import Outcome

NUM_IMAGES, NUM_VIEWS = 6, 6
"""Rows and columns of views.png at most, the plain image included."""


def write_history(run: RunFolder, outcomes: Sequence[Outcome], task: Task) -> None:
    """Write history.csv, a row for each epoch, and the learning curves; epochs count from 1."""
    history: list[dict[str, Any]] = []
    for outcome in outcomes:
        for row in outcome.history:
            history.append({"phase": outcome.name, "epoch": len(history) + 1, **row})
    columns = history_columns(task)
    rows = ([row[name] for name in columns] for row in history)
    run.write_rows("history.csv", columns, rows)
    best = [epoch == one.best_epoch for one in outcomes for epoch in range(1, len(one.history) + 1)]
    names = {one.name: one.name if one.kept else f"{one.name} (undone)" for one in outcomes}
    history = [
        {**row, "phase": names[row["phase"]], "is_best": is_best}
        for row, is_best in zip(history, best, strict=True)
    ]
    monitor = task.monitor
    with run.replacing("figures/learning_curves.png") as path:
        draw_learning_curves(history, path, metric=monitor.metric, is_share=monitor.is_share)


def history_columns(task: Task) -> list[str]:
    """The header of history.csv: the loss and all of the task's metrics, on both splits."""
    metrics = ["loss", *(metric.name for metric in task.metrics())]
    validation = [f"val_{name}" for name in metrics]
    return ["phase", "epoch", *metrics, *validation, "learning_rate", "seconds"]


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
    draw_views(shown(views), [", ".join(records.items[row].target) for row in rows], file)


def write_test(
    run: RunFolder,
    task: Task,
    records: Records,
    rows: np.ndarray,
    examples: Examples,
    *,
    test: Evaluation,
    outputs: np.ndarray,
) -> None:
    """Write predictions.csv and the task's figures of the test split.

    Args:
        rows: the test split's.
        test: their evaluation.
        outputs: [len(rows), K].
    """
    values = examples.targets.values[rows]
    predictions = (
        [records.items[row].path, *task.row(output, value)]
        for row, output, value in zip(rows, outputs, values, strict=True)
    )
    run.write_rows("predictions.csv", ["path", *task.columns(labelled=True)], predictions)
    figures = task.figures(
        values,
        outputs,
        test,
        image=lambda place: shown(examples.pixels[rows[place]]),
        files=[Path(records.items[row].path).name for row in rows],
    )
    for name, draw in figures.items():
        with run.replacing(f"figures/{name}") as path:
            draw(path)
