"""Decoupled distillation: the true class and the distribution over all others count separately.

Source: B. Zhao et al., "Decoupled knowledge distillation", CVPR 2022.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from keras import ops

from keras_transfer.fields import option
from keras_transfer.methods.distillation.kind import Batch, KindDefaults
from keras_transfer.tasks.soft_losses import divergence

_FAR = -1e9
"""A logit whose probability is 0 in float32."""


@dataclass(frozen=True, kw_only=True)
class DecoupledOptions:
    """Options of decoupled distillation."""

    alpha: float = option(1.0, "weight of the true class against all others together", low=0)
    beta: float = option(8.0, "weight of the distribution over the other classes", low=0)


@dataclass(frozen=True)
class Decoupled(KindDefaults):
    """T^2 (alpha TCKD + beta NCKD).

    TCKD is the divergence of (p, 1 - p) for the probability p of the target class, NCKD that of the
    distributions over the other classes. The divergence of kind 'logits' is
    TCKD + (1 - p of the teacher) NCKD.
    """

    options: DecoupledOptions = field(default_factory=DecoupledOptions)

    Options: ClassVar = DecoupledOptions
    name: ClassVar[str] = "decoupled"
    needs_classes: ClassVar[bool] = True

    def losses(self, batch: Batch) -> Any:
        """See the class."""
        of_target, of_others = decoupled_divergences(batch)
        weighed = self.options.alpha * of_target + self.options.beta * of_others
        return batch.temperature**2 * weighed


def decoupled_divergences(batch: Batch) -> tuple[Any, Any]:
    """TCKD and NCKD at the batch's temperature, [B] each."""
    logits = batch.teacher / batch.temperature, batch.student / batch.temperature
    pairs = [_target_against_others(one, batch.targets) for one in logits]
    others = [ops.where(batch.targets > 0, _FAR, one) for one in logits]
    return divergence(*pairs), divergence(*others)


def _target_against_others(logits: Any, targets: Any) -> Any:
    """Logits [B, 2] of the target class and of all others together."""
    others = ops.logsumexp(ops.where(targets > 0, _FAR, logits), axis=-1)
    return ops.stack([ops.sum(targets * logits, axis=-1), others], axis=-1)
