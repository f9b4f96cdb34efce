"""Losses and metrics of several targets side by side, each on its columns where it is known.

Source of the learned weights: A. Kendall et al., "Multi-task learning using uncertainty to weigh
losses for scene geometry and semantics", CVPR 2018.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import keras
from keras import ops

SUMMED_LOSS: Final = "summed_loss"

RATE: Final = 30.0
"""Learned weights move this many times as far in a step as other weights: they are few, start far
from their optimum, and fine-tuning has small steps."""


class LossWeights(keras.layers.Layer):
    """Logarithms of the variances of T losses, which train with the network."""

    def __init__(self, num_losses: int) -> None:
        super().__init__(name="loss_weights", dtype="float32")
        self._scaled = self.add_weight(
            shape=(num_losses,), initializer="zeros", name="log_variances"
        )

    @property
    def logarithms(self) -> Any:
        """s [T], 0 at the start."""
        return RATE * self._scaled


@dataclass(frozen=True, eq=False)
class LossPart:
    """The loss of one target: its columns, the factor of its loss, and of each of its classes."""

    loss: keras.losses.Loss
    columns: slice
    factor: float = 1.0
    class_weights: tuple[float, ...] = ()

    def losses(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Losses [B], 0 without a known value, and whether there is one, [B]."""
        targets, logits = y_true[:, self.columns], y_pred[:, self.columns]
        known = ops.any(ops.logical_not(ops.isnan(targets)), axis=-1)
        targets = ops.where(known[:, None], targets, 0.0)
        losses = self.loss.call(targets, logits)
        if self.class_weights:
            weights = ops.convert_to_tensor(self.class_weights, losses.dtype)
            losses = losses * ops.sum(targets * weights, axis=-1)
        known = ops.cast(known, losses.dtype)
        return self.factor * losses * known, known


class MultiTaskLoss(keras.losses.Loss):
    """The sum of the targets' losses, each averaged over the images with a known value.

    With a `layer` of logarithms s it is sum_t exp(-s_t) L_t + s_t, least for s_t = log L_t. With
    `projects` gradients of targets that are in conflict are projected; see `training.projection`.
    """

    def __init__(
        self,
        parts: Sequence[LossPart],
        layer: LossWeights | None = None,
        *,
        projects: bool = False,
    ) -> None:
        super().__init__(name="multi_task")
        self.parts, self.layer, self.projects = parts, layer, projects

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Losses [B] of encoded targets, NaN where unknown, and logits [B, K]."""
        summands = self.separate(y_true, y_pred)
        if self.layer is None:
            return sum(summands[1:], summands[0])
        return ops.sum(ops.stack(summands, axis=-1), axis=-1)

    def separate(self, y_true: Any, y_pred: Any) -> list[Any]:
        """The summand of each target, [B]."""
        losses = [part.losses(y_true, y_pred)[0] for part in self.parts]
        if self.layer is None:
            return losses
        logarithms = self.layer.logarithms
        weighed = ops.stack(losses, axis=-1) * ops.exp(-logarithms) + logarithms
        return list(ops.unstack(weighed, axis=-1))


class SummedLoss(keras.metrics.Metric):
    """The sum over targets of their mean losses over known values, without weights of examples."""

    def __init__(self, parts: Sequence[LossPart]) -> None:
        super().__init__(name=SUMMED_LOSS)
        self._parts = parts
        self._sums, self._counts = (
            self.add_variable((len(parts),), initializer="zeros", name=name)
            for name in ("sums", "counts")
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Encoded targets and logits [B, K], weights [B]: examples of weight 0 do not count."""
        y_true = ops.convert_to_tensor(y_true, self.dtype)
        y_pred = ops.convert_to_tensor(y_pred, self.dtype)
        counts: Any = 1.0
        if sample_weight is not None:
            counts = ops.cast(ops.convert_to_tensor(sample_weight) > 0, self.dtype)
        found = [part.losses(y_true, y_pred) for part in self._parts]
        self._sums.assign_add(ops.stack([ops.sum(losses * counts) for losses, _ in found]))
        self._counts.assign_add(ops.stack([ops.sum(known * counts) for _, known in found]))

    def result(self) -> Any:
        """0 for a target without a known value."""
        return ops.sum(self._sums / ops.maximum(ops.convert_to_tensor(self._counts), 1))


class TargetMetric(keras.metrics.Metric):
    """A metric of one target on its columns, over the examples with a known value."""

    def __init__(self, metric: keras.metrics.Metric, target: str, columns: slice) -> None:
        super().__init__(name=f"{target}_{metric.name}")
        self._metric, self._columns = metric, columns

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Encoded targets and logits [B, K], weights [B]."""
        targets = ops.convert_to_tensor(y_true, self.dtype)[:, self._columns]
        known = ops.any(ops.logical_not(ops.isnan(targets)), axis=-1)
        weights = ops.cast(known, self.dtype)
        if sample_weight is not None:
            weights = weights * ops.convert_to_tensor(sample_weight, self.dtype)
        logits = ops.convert_to_tensor(y_pred, self.dtype)[:, self._columns]
        self._metric.update_state(ops.where(known[:, None], targets, 0.0), logits, weights)

    def result(self) -> Any:
        """That of the metric."""
        return self._metric.result()
