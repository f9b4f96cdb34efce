"""Dynamic weights: the teacher counts less where it is unsure, and later in training."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from scipy.special import entr

from keras_transfer.fields import option
from keras_transfer.methods.distillation.kind import Batch, KindDefaults, divergences


@dataclass(frozen=True, kw_only=True)
class DynamicOptions:
    """Options of dynamic weights."""

    prefer_unsure: bool = option(
        False, "count examples more, not less, where the teacher is unsure"
    )
    fade: float = option(
        0.0,
        "share of the teacher's weight that labels have taken over in the last epoch",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class Dynamic(KindDefaults):
    """The divergences of kind 'logits', weighed by 1 - H(p) / log K for the teacher's p.

    H is the entropy, so the weight is 0 where the teacher's probabilities are all the same and 1
    where it is certain; `prefer_unsure` takes H(p) / log K. All are divided by their mean. With
    `fade` the teacher's part falls linearly with the epochs.
    """

    options: DynamicOptions = field(default_factory=DynamicOptions)

    Options: ClassVar = DynamicOptions
    name: ClassVar[str] = "dynamic"
    needs_classes: ClassVar[bool] = True

    def weights(self, teacher: np.ndarray) -> np.ndarray:
        """See the class; 1 where all would be 0."""
        unsure = entr(teacher).sum(axis=-1) / np.log(teacher.shape[-1])
        weights = unsure if self.options.prefer_unsure else 1 - unsure
        weights = np.clip(weights, 0, 1)
        mean = weights.mean()
        return (weights / mean if mean > 0 else np.ones_like(weights)).astype(np.float32)

    @property
    def is_convex(self) -> bool:
        """Yes, where the weights do not change with the epochs."""
        return self.options.fade == 0

    def progress(self, share: float) -> float:
        """1 in the first epoch, 1 - fade in the last one."""
        return 1 - self.options.fade * share

    def losses(self, batch: Batch) -> Any:
        """The divergences."""
        return divergences(batch)
