"""Which weights a later phase leaves: those before it, after it, or between the two.

Fine-tuning may help or harm, and often a mean of the weights before and after it is better than
both. The choice is made by the loss on validation images, with the probabilities of each candidate
at their own best temperature: fine-tuning leaves them too high, or with label smoothing too low,
which one number mends. The chosen network keeps that number in its last dense layer.

Source: M. Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, on the mean of
weights. C. Guo et al., "On calibration of modern neural networks", ICML 2017, on the temperature.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import keras
import numpy as np
from scipy.optimize import minimize_scalar

from keras_transfer.devices.strategy import scope
from keras_transfer.models.activations import Kind, activate, ranges
from keras_transfer.models.classifier import Classifier
from keras_transfer.tasks.task import Task
from keras_transfer.training.progress import Arrays, assign_weights, read_weights

SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidates: the share of the weights after a phase in the mean with those before it."""

_LARGEST_TEMPERATURE: Final = 10.0

Temperature = float | list[float]


class Choice(NamedTuple):
    """The share of the weights after a phase, and the temperature that suits them best.

    Of outputs with several activations it is a temperature for each of their ranges.
    """

    share: float
    temperature: Temperature


def choose_share(
    variables: list[keras.Variable],
    before: Arrays,
    *,
    task: Task,
    values: np.ndarray,
    predict: Callable[[], np.ndarray],
    shares: Sequence[float] = SHARES,
) -> Choice:
    """Set the variables to the best mean of their present values and those `before`.

    Args:
        values: target values of the validation split.
        predict: outputs of the validation split with the present weights.
        shares: the candidates.

    Returns:
        Of equally good shares of the present values the smallest. Weights that are undone keep the
        temperature they had.
    """
    after = read_weights(variables)
    found = []
    for share in shares:
        blend(variables, before, after, share)
        found.append(best_temperature(task, values, predict()))
    best = int(np.argmin([loss for _, loss in found]))
    blend(variables, before, after, shares[best])
    return Choice(shares[best], found[best][0] if shares[best] else 1.0)


def blend(variables: list[keras.Variable], before: Arrays, after: Arrays, share: float) -> None:
    """Set every variable to `(1 - share) * before + share * after`."""
    mixed = {
        path: value if share == 1 else before[path] + share * (value - before[path])
        for path, value in after.items()
    }
    assign_weights(variables, mixed)


def best_temperature(
    task: Task, values: np.ndarray, outputs: np.ndarray
) -> tuple[Temperature, float]:
    """The divisor of the logits of outputs [N, K] with the lowest mean loss, and this loss.

    It is 1 where outputs are not probabilities. Of several activations each has a divisor of its
    own, because the loss is a sum over them.
    """
    parts, scaled = ranges(task.activation, outputs.shape[1]), outputs
    found = [1.0] * len(parts)
    for number, (kind, own) in enumerate(parts):
        if kind != "linear":
            found[number], scaled = _scaled_best(task, values, scaled, own, kind)
    loss = float(task.example_losses(values, scaled).mean())
    return found[0] if isinstance(task.activation, str) else found, loss


def _scaled_best(
    task: Task, values: np.ndarray, outputs: np.ndarray, own: slice, kind: Kind
) -> tuple[float, np.ndarray]:
    """The best divisor of the logits of some columns, and the outputs with it."""
    logits = _logits(outputs[:, own].astype(np.float64), kind)

    def at(log_temperature: float) -> np.ndarray:
        changed = activate(logits / np.exp(log_temperature), kind)
        if logits.shape == outputs.shape:
            return changed
        return np.concatenate([outputs[:, : own.start], changed, outputs[:, own.stop :]], axis=1)

    def loss(log_temperature: float) -> float:
        return float(task.example_losses(values, at(log_temperature)).mean())

    bound = np.log(_LARGEST_TEMPERATURE)
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded")
    return float(np.exp(found.x)), at(found.x)


def divide_logits(classifier: Classifier, temperature: Temperature) -> None:
    """Divide the logits by a temperature, in the weights of the last dense layer."""
    logits, activation = classifier.last_dense, classifier.task.activation
    widths = [own.stop - own.start for _, own in ranges(activation, logits.units)]
    each = np.broadcast_to(np.asarray(temperature, np.float32), len(widths))
    divisors = np.repeat(each, widths)
    with scope():
        for variable in (logits.kernel, logits.bias):
            variable.assign(np.array(variable) / divisors)


def _logits(outputs: np.ndarray, activation: Kind) -> np.ndarray:
    """Logits whose activation gives the outputs, where these are not rounded to 0 or 1."""
    tiny = 1e-12
    logits = np.log(np.clip(outputs, tiny, 1))
    if activation == "sigmoid":
        logits = logits - np.log(np.clip(1 - outputs, tiny, 1))
    return logits
