"""Soft labels: the student's probabilities follow the teacher's."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from keras_transfer.methods.distillation.kind import Batch, KindDefaults, NoOptions, divergences


@dataclass(frozen=True)
class Logits(KindDefaults):
    """The divergence of the two distributions over classes, see `kind.divergences`."""

    options: NoOptions = field(default_factory=NoOptions)

    Options: ClassVar = NoOptions
    name: ClassVar[str] = "logits"

    @property
    def is_convex(self) -> bool:
        """Yes."""
        return True

    def losses(self, batch: Batch) -> Any:
        """The divergences."""
        return divergences(batch)
