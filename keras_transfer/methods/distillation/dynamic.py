"""Dynamic weights: an example counts less where the teacher is unsure."""

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


@dataclass(frozen=True)
class Dynamic(KindDefaults):
    """The divergences of kind 'logits', weighed by 1 - H(p) / log K for the teacher's p.

    H is the entropy, so the weight is 0 where the teacher's probabilities are all the same and 1
    where it is certain; `prefer_unsure` takes H(p) / log K. All are divided by their mean.
    """

    options: DynamicOptions = field(default_factory=DynamicOptions)

    Options: ClassVar = DynamicOptions
    name: ClassVar[str] = "dynamic"

    def weights(self, teacher: np.ndarray) -> np.ndarray:
        """See the class; 1 where all would be 0."""
        unsure = entr(teacher).sum(axis=-1) / np.log(teacher.shape[-1])
        weights = unsure if self.options.prefer_unsure else 1 - unsure
        weights = np.clip(weights, 0, 1)
        mean = weights.mean()
        return (weights / mean if mean > 0 else np.ones_like(weights)).astype(np.float32)

    def losses(self, batch: Batch) -> Any:
        """The divergences."""
        return divergences(batch)
