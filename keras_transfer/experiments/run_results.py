"""Writes the model of a run, its test figures and its verified export."""

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_transfer.data.splits import NAMES
from keras_transfer.evaluation.results import Evaluation
from keras_transfer.experiments.run_report import write_test, write_views
from keras_transfer.experiments.session import Data, Session
from keras_transfer.export.bundle.deployment import deliver
from keras_transfer.export.card import make_card
from keras_transfer.export.kept_images import keep_images
from keras_transfer.export.saved_model.proof import Proof
from keras_transfer.inference.prediction import TASK_FILE
from keras_transfer.storage.checksums import write_checksums
from keras_transfer.tasks.registry import describe_task
from keras_transfer.tasks.task import Task


def write_results(
    session: Session,
    data: Data,
    model: keras.Model,
    task: Task,
    *,
    test: Evaluation,
    outputs: np.ndarray,
    save: Callable[[Path], None],
    limits: Sequence[str] = (),
) -> Proof:
    """Write a run's results into its folder, except history.csv and metrics.json.

    Args:
        task: the model's task after training.
        test: the evaluation on the test split.
        outputs: of the test split, [N, K].
        save: writes the model to a `.keras` file.
        limits: sentences of the model's card, besides those of the task.

    Raises:
        ExportError: the exported model does not agree with the trained one.
        RunError: the disk is full, or the folder cannot be written.
    """
    run, spec, rows = session.run, session.spec, data.splits.test
    assert run
    write_views(run, spec, data.records, data.splits, data.examples)
    write_test(run, task, data.records, rows, data.examples, test=test, outputs=outputs)
    run.write_json(TASK_FILE, describe_task(task))
    with run.replacing("model.keras") as path:
        save(path)
    if spec.run.keep_images == "proof":
        keep_images(run, data.records, data.splits)
    write_checksums(run.path, (TASK_FILE, run.model_file.name))
    counts = {name: len(getattr(data.splits, name)) for name in NAMES}
    return deliver(
        model,
        run.export_folder / "1",
        spec=spec,
        task=task,
        card=make_card(spec, model, task, test, counts, limits=limits),
        files=[data.records.file(row) for row in rows],
        outputs=outputs,
        reporter=session.reporter,
    )
