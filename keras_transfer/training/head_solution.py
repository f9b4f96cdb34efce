"""The solved head of a phase: the weights of the last layer, without an optimizer."""

import time

import keras
import numpy as np

from keras_transfer.devices.hosts import share_from_first
from keras_transfer.devices.strategy import scope
from keras_transfer.features.phase_inputs import SplitData
from keras_transfer.models.activations import activate
from keras_transfer.models.classifier import Classifier
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import PhaseSpec
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead
from keras_transfer.tasks.task import Task
from keras_transfer.training.objective import Objective
from keras_transfer.training.phases import PhaseResult, apply_phase
from keras_transfer.training.progress import Saver, State

_BATCH_SIZE = 1024


def solve_head(
    classifier: Classifier,
    phase: PhaseSpec,
    data: SplitData,
    *,
    objective: Objective,
    saver: Saver | None,
    predictor: keras.Model,
    reporter: Reporter,
) -> PhaseResult | None:
    """Solve the classifier's last dense layer on all views of the training split, and set it.

    Args:
        objective: of the phase, with the function that solves it.
        saver: keeps a head with differential privacy before anything is said about it, so that a
            resumed run does not train another one; that would take more of the budget.
        predictor: the part of the classifier that maps `data.inputs` to logits.

    Returns:
        The result, as of one epoch; None where the task's loss has no exact solution.
    """
    started = time.perf_counter()
    num_trainable = apply_phase(classifier, phase)
    logits = classifier.last_dense
    features = data.head_features(logits)
    head = _solution(objective, features, data.train_values, saver)
    if head is None:
        reporter.info(f"Phase {phase.name!r} trains from random weights: no exact solution here.")
        return None
    with scope():
        logits.kernel.assign(head.kernel.astype(np.float32))
        logits.bias.assign(head.bias.astype(np.float32))
    reporter.info(f"Phase {phase.name!r}: {_describe(head, features, objective)}.")
    row = _history_row(data, predictor)
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


def _solution(
    objective: Objective, features: HeadFeatures, values: np.ndarray, saver: Saver | None
) -> LinearHead | None:
    """The head of the objective's solver, or that of an interrupted run if it is private."""
    assert objective.solve
    kept = saver if objective.privacy else None
    if kept and (state := kept.load()):
        arrays = state.arrays["head"]
        return LinearHead(arrays["kernel"], arrays["bias"], **state.numbers["head"])
    # Host 0's solution: that of another kind of processor may differ in its last digits.
    head: LinearHead | None = share_from_first(objective.solve(features, values))
    if kept and head:
        numbers = {name: getattr(head, name) for name in ("strength", "loss", "num_iterations")}
        arrays = {"kernel": head.kernel, "bias": head.bias}
        kept.save(State({"history": [], "head": numbers}, {"head": arrays}))
    return head


def _describe(head: LinearHead, features: HeadFeatures, objective: Objective) -> str:
    images = f"{features.num_examples:,} images"
    if privacy := objective.privacy:
        return (
            f"the head is trained on {images} with differential privacy, "
            f"ε = {privacy['epsilon']:.4g} at δ = {privacy['delta']:g}"
        )
    views = f"{features.num_views} {'view' if features.num_views == 1 else 'views'}"
    strengths = " and ".join(f"{strength:.3g}" for strength in head.strengths)
    return f"the head is solved exactly on {images} in {views}, with strength {strengths}"


def _history_row(data: SplitData, predictor: keras.Model) -> dict[str, float]:
    """The columns of an epoch in the history; those of validation only where there is one."""
    values, row = data.examples.targets.values, {"learning_rate": 0.0}
    for prefix, rows in {"": data.splits.train, "val_": data.splits.val}.items():
        if len(rows):
            found = epoch_metrics(data.task, values[rows], data.logits(predictor, rows))
            row |= {prefix + name: value for name, value in found.items()}
    return row


def epoch_metrics(task: Task, values: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """The loss and the task's metrics by name, as Keras logs them; all examples weigh the same."""
    metrics = task.metrics()
    for start in range(0, len(values), _BATCH_SIZE):
        part = slice(start, start + _BATCH_SIZE)
        encoded = task.encode(values[part])
        for metric in metrics:
            metric.update_state(encoded, logits[part])
    losses = task.example_losses(values, activate(logits, task.activation))
    return {"loss": float(losses.mean()), **{m.name: float(m.result()) for m in metrics}}
