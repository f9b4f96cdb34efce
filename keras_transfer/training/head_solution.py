"""The solved head of a phase: the weights of the last layer, without an optimizer."""

import time

import keras
import numpy as np

from keras_transfer.devices.hosts import share_from_first
from keras_transfer.devices.strategy import scope
from keras_transfer.features.phase_inputs import SplitData
from keras_transfer.models.classifier import Classifier
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import PhaseSpec
from keras_transfer.training.objective import Solve
from keras_transfer.training.phases import PhaseResult, apply_phase


def solve_head(
    classifier: Classifier,
    phase: PhaseSpec,
    data: SplitData,
    *,
    solve: Solve,
    predictor: keras.Model,
    reporter: Reporter,
) -> PhaseResult | None:
    """Solve the classifier's last dense layer on all views of the training split, and set it.

    Args:
        predictor: the part of the classifier that maps `data.inputs` to logits.

    Returns:
        The result, as of one epoch; None where the task's loss has no exact solution.
    """
    started = time.perf_counter()
    num_trainable = apply_phase(classifier, phase)
    logits = classifier.last_dense
    features = data.head_features(logits)
    # Host 0's solution: that of another kind of processor may differ in its last digits.
    head = share_from_first(solve(features, data.train_values))
    if head is None:
        reporter.info(f"Phase {phase.name!r} trains from random weights: no exact solution here.")
        return None
    with scope():
        logits.kernel.assign(head.kernel.astype(np.float32))
        logits.bias.assign(head.bias.astype(np.float32))
    reporter.info(
        f"Phase {phase.name!r}: the head is solved exactly on {features.num_examples:,} images in "
        f"{features.num_views} {'view' if features.num_views == 1 else 'views'}, with strength "
        f"{head.strength:.3g}."
    )
    row = _figures(data, predictor)
    row["seconds"] = time.perf_counter() - started
    return PhaseResult(
        name=phase.name,
        epochs=1,
        best_epoch=1,
        seconds=row["seconds"],
        num_trainable=num_trainable,
        history=(row,),
        is_finished=True,
    )


def _figures(data: SplitData, predictor: keras.Model) -> dict[str, float]:
    """The columns of an epoch in the history; those of validation only where there is one."""
    monitor, values = data.task.monitor, data.examples.targets.values
    row = {"learning_rate": 0.0}
    splits = {"": data.splits.train, "val_": data.splits.val}
    for prefix, rows in splits.items():
        if len(rows):
            outputs = data.predict(predictor, rows)
            row[f"{prefix}loss"] = float(data.task.example_losses(values[rows], outputs).mean())
            row[prefix + monitor.metric] = data.task.headline(values[rows], outputs).value
    return row
