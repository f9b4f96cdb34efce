"""The interface of a task: a kind of target, and everything that depends on it.

A new kind of target is one module with one class and one row in `tasks.registry`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import keras
import numpy as np

from keras_transfer.data.records import Record
from keras_transfer.data.targets import Targets
from keras_transfer.evaluation.results import Evaluation, Headline
from keras_transfer.models.activations import Activation
from keras_transfer.specs import ModelSpec, TrainingSpec


@dataclass(frozen=True)
class Monitor:
    """The validation metric that checkpoints, rollback and the tuner compare.

    Keras logs it as `val_<metric>`. `is_share` says that it is a share of 1, shown in %.
    """

    metric: str
    mode: Literal["max", "min"]
    is_share: bool = False

    @property
    def log_name(self) -> str:
        """Name in Keras's logs and of a tuner's objective."""
        return f"val_{self.metric}"

    def rank(self, value: float) -> float:
        """The value, negated where lower is better: higher is better."""
        return value if self.mode == "max" else -value

    def format(self, value: float) -> str:
        """The value as text."""
        return f"{value:.1%}" if self.is_share else f"{value:.4g}"

    def format_gain(self, gain: float, error: float) -> str:
        """A gain in the mean of `Task.example_scores` with its standard error, as text."""
        if self.is_share:
            return f"{100 * gain:+.1f} ± {100 * error:.1f} points"
        return f"{gain:+.3g} ± {error:.2g}"


class Task(Protocol):
    """A kind of target. Immutable, and small enough to be sent to other processes.

    `values` are those of `Targets`, or some of their rows; `outputs` are activated, float32
    [N, K], one row for each value.
    """

    @property
    def name(self) -> str:
        """The row of the registry."""

    @property
    def names(self) -> tuple[str, ...]:
        """What each of the K outputs stands for."""

    @property
    def options(self) -> Any:
        """A frozen dataclass with the checked `task_options`."""

    @property
    def activation(self) -> Activation:
        """From logits to outputs."""

    @property
    def monitor(self) -> Monitor:
        """What is compared between epochs, phases and trials."""

    @property
    def state(self) -> dict[str, Any]:
        """What `fitted` has chosen: fields of the class as JSON values."""

    def targets(self, records: Sequence[Record]) -> Targets:
        """The targets of images.

        Raises:
            DataError: a target is missing or means nothing to this task; it names the image.
        """

    def encode(self, values: np.ndarray) -> np.ndarray:
        """What the loss takes, float32 [B, K]."""

    def head(self, spec: ModelSpec, seed: int) -> list[keras.layers.Layer]:
        """Layers above the trunk, bottom to top; the last gives float32 logits [B, K]."""

    def loss(self, training: TrainingSpec) -> keras.losses.Loss:
        """The training loss of encoded targets and logits."""

    def metrics(self) -> list[keras.metrics.Metric]:
        """New metrics of encoded targets, logits and weights; one is called `monitor.metric`."""

    def example_weights(self, values: np.ndarray, training: TrainingSpec) -> np.ndarray:
        """Weights of training examples in the loss, float32 [N]."""

    def example_scores(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """How good each prediction is, float64 [N], higher is better: gains are made of them."""

    def example_losses(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """The loss of each prediction without label smoothing, float64 [N]."""

    def headline(self, values: np.ndarray, outputs: np.ndarray) -> Headline:
        """The monitored metric of predictions with its interval; that of `evaluate` as well."""

    def evaluate(self, values: np.ndarray, outputs: np.ndarray, *, seed: int = 0) -> Evaluation:
        """All figures; `seed` is the bootstrap's."""

    def fitted(self, values: np.ndarray, outputs: np.ndarray) -> "Task":
        """The task after training, with what is chosen on validation, such as thresholds."""

    def columns(self, *, labelled: bool = False) -> list[str]:
        """CSV columns of a prediction; with `labelled` those of the true value as well."""

    def row(self, outputs: np.ndarray, value: Any = None) -> list[str | float]:
        """The cells of one prediction, outputs [K]; labelled where the true value is given."""
