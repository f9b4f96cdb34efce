"""Writes the model of a run, its test figures and its verified export."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_transfer.evaluation.results import Evaluation
from keras_transfer.experiments.run_report import write_test, write_views
from keras_transfer.experiments.session import Data, Session
from keras_transfer.experiments.sparsity import Sparsity
from keras_transfer.export.bundle.deployment import deliver
from keras_transfer.export.card import Card
from keras_transfer.export.kept_images import keep_images
from keras_transfer.export.saved_model.proof import Proof
from keras_transfer.inference.prediction import TASK_FILE
from keras_transfer.specs import RunSpec
from keras_transfer.storage.checksums import write_checksums
from keras_transfer.tasks.registry import describe_task
from keras_transfer.tasks.task import Task
from keras_transfer.training.fitting import Outcome
from keras_transfer.training.refitting import Refit


def write_results(
    session: Session,
    data: Data,
    model: keras.Model,
    task: Task,
    *,
    test: Evaluation,
    outputs: np.ndarray,
    save: Callable[[Path], None],
    card: Card,
) -> Proof:
    """Write a run's results into its folder, except history.csv and metrics.json.

    Args:
        task: the model's task after training.
        test: the evaluation on the test split.
        outputs: of the test split, [N, K].
        save: writes the model to a `.keras` file.
        card: of the exported model.

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
    return deliver(
        model,
        run.export_folder / "1",
        spec=spec,
        task=task,
        card=card,
        files=[data.records.file(row) for row in rows],
        outputs=outputs,
        reporter=session.reporter,
    )


def as_trained(spec: RunSpec, names: Sequence[str]) -> RunSpec:
    """The spec with the phases of these names: others were left out (`min_images`)."""
    return replace(spec, phases=tuple(phase for phase in spec.phases if phase.name in names))


def describe_metrics(
    outcomes: Sequence[Outcome],
    refitted: Refit | None,
    test: Evaluation,
    proof: Proof,
    sparsity: Sparsity | None,
    privacy: dict[str, Any] | None,
) -> dict[str, Any]:
    """The content of metrics.json."""
    phases = [asdict(outcome) for outcome in outcomes]
    for phase in phases:
        # history.csv has the one, a section of its own the other.
        del phase["history"], phase["privacy"]
    return {
        "phases": phases,
        "refit": refitted and asdict(refitted),
        "test": test.to_dict(),
        "export": describe_export(proof),
        **({"sparsity": asdict(sparsity)} if sparsity else {}),
        **({"privacy": privacy} if privacy else {}),
    }


def describe_export(proof: Proof) -> dict[str, Any]:
    """The export's part of metrics.json.

    The largest difference of outputs depends on which network was fastest, so it is only in
    proof.json.
    """
    return {
        "num_files": proof.parity.num_files,
        "label_agreement": proof.parity.label_agreement,
    }
