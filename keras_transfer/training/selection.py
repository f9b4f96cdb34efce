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
from keras_transfer.models.activations import activate
from keras_transfer.models.classifier import Classifier
from keras_transfer.tasks.task import Task
from keras_transfer.training.progress import Arrays, assign_weights, read_weights

SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidates: the share of the weights after a phase in the mean with those before it."""

_LARGEST_TEMPERATURE: Final = 10.0


class Choice(NamedTuple):
    """The share of the weights after a phase, and the temperature that suits them best."""

    share: float
    temperature: float


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


def best_temperature(task: Task, values: np.ndarray, outputs: np.ndarray) -> tuple[float, float]:
    """The divisor of the logits of outputs [N, K] with the lowest mean loss, and this loss.

    It is 1 for tasks whose outputs are not probabilities.
    """

    def loss(log_temperature: float) -> float:
        scaled = activate(logits / np.exp(log_temperature), task.activation)
        return float(task.example_losses(values, scaled).mean())

    if task.activation == "linear":
        return 1.0, float(task.example_losses(values, outputs).mean())
    logits = _logits(outputs.astype(np.float64), task.activation)
    bound = np.log(_LARGEST_TEMPERATURE)
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded")
    return float(np.exp(found.x)), float(found.fun)


def divide_logits(classifier: Classifier, temperature: float) -> None:
    """Divide the logits by a temperature, in the weights of the last dense layer."""
    logits = classifier.last_dense
    with scope():
        for variable in (logits.kernel, logits.bias):
            variable.assign(np.array(variable) / np.float32(temperature))


def _logits(outputs: np.ndarray, activation: str) -> np.ndarray:
    """Logits whose activation gives the outputs, where these are not rounded to 0 or 1."""
    tiny = 1e-12
    logits = np.log(np.clip(outputs, tiny, 1))
    if activation == "sigmoid":
        logits = logits - np.log(np.clip(1 - outputs, tiny, 1))
    return logits
