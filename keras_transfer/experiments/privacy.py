"""The report on a head with differential privacy, beside the exact head of the same images.

The exact head is solved for the comparison alone and written nowhere.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from keras_transfer.devices.strategy import scope
from keras_transfer.evaluation.membership import Membership
from keras_transfer.features.phase_inputs import PhaseInputs, SplitData
from keras_transfer.models.classifier import Classifier
from keras_transfer.tasks.task import Monitor
from keras_transfer.training.fitting import Outcome


def report_privacy(
    classifier: Classifier, phase_inputs: PhaseInputs, outcomes: Sequence[Outcome]
) -> dict[str, Any] | None:
    """What is guaranteed and what a simple attack finds, as in metrics.json.

    `membership` has the test score and the figures of `Membership` by head, 'private' and 'exact'.

    Args:
        classifier: with its final weights.
        phase_inputs: those of its phases.

    Returns:
        None where no phase trained with differential privacy.
    """
    privacy = outcomes[0].privacy
    if privacy is None:
        return None
    data, part = phase_inputs.for_phase(classifier, 0)
    predictor = keras.Model(part.input, part.output)
    logits = classifier.last_dense
    found = {"private": _attack(data, predictor)}
    private = [np.array(variable) for variable in (logits.kernel, logits.bias)]
    exact = data.task.solve_head(
        data.head_features(logits), data.train_values, phase_inputs.spec.training
    )
    assert exact
    with scope():
        logits.kernel.assign(exact.kernel.astype(np.float32))
        logits.bias.assign(exact.bias.astype(np.float32))
    found["exact"] = _attack(data, predictor)
    with scope():
        logits.kernel.assign(private[0])
        logits.bias.assign(private[1])
    return {**privacy, "membership": found}


def _attack(data: SplitData, predictor: keras.Model) -> dict[str, Any]:
    task, values, losses = data.task, data.examples.targets.values, []
    for rows in (data.splits.train, data.splits.test):
        outputs = data.predict(predictor, rows)
        losses.append(task.example_losses(values[rows], outputs))
    score = task.headline(values[data.splits.test], outputs).value
    return {"test_score": score, **asdict(Membership.of(*losses))}


def describe_privacy(report: dict[str, Any]) -> str:
    """The guarantee and its limits, in sentences."""
    return (
        f"Differential privacy: ε = {report['epsilon']:.4g} at δ = {report['delta']:g} covers "
        f"{report['covers']}; {report['steps']} steps with noise multiplier "
        f"{report['noise_multiplier']:.4g}, sampling rate {report['sampling_rate']:g} and "
        f"clipping norm {report['clip_norm']:g}. It does not cover "
        f"{'; '.join(report['does_not_cover'])}."
    )


def privacy_limits(report: dict[str, Any] | None) -> list[str]:
    """The sentences on privacy among the limits of a model's card."""
    return [describe_privacy(report)] if report else []


def describe_membership(report: dict[str, Any], monitor: Monitor) -> str:
    """What the loss tells of who was trained on, for both heads."""
    parts = []
    for name, found in report["membership"].items():
        low, high = found["auc_interval"]
        parts.append(
            f"{found['auc']:.3f} ({low:.3f} to {high:.3f}) of the {name} head, test "
            f"{monitor.metric.replace('_', ' ')} {monitor.format(found['test_score'])}"
        )
    return (
        f"Chance that a training image has a lower loss than a test image (0.5 hides it): "
        f"{'; '.join(parts)}."
    )
