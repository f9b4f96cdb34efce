"""The interface of a training method: how a phase trains.

A new method is one module with one class and one row in `methods.registry`. The class has a name,
a frozen dataclass `Options` with the fields of `phases.N.method_options`, and is built from one.
"""

from typing import Any, Protocol

import keras

from keras_transfer.specs import PhaseSpec, RunSpec
from keras_transfer.training.objective import PhaseMethod


class Method(PhaseMethod, Protocol):
    """The training method of one phase, with its options. Immutable."""

    @property
    def options(self) -> Any:
        """A frozen dataclass with the checked `method_options`."""

    def check(self, spec: RunSpec, number: int) -> None:
        """Check that the method can train phase `number` of a spec, before any image is read.

        Raises:
            SpecError: it cannot, or another phase would undo what it does.
        """


class MethodDefaults:
    """Members of `Method` that most methods share."""

    @property
    def needs_images(self) -> bool:
        """No: stored features will do."""
        return False

    @property
    def uses_unlabelled(self) -> bool:
        """No."""
        return False

    def check(self, spec: RunSpec, number: int) -> None:
        """Any spec will do."""

    def num_views(self, phase: PhaseSpec, available: int) -> int:
        """One view in each epoch."""
        return min(available, phase.epochs)

    def finish(self, model: keras.Model) -> None:
        """Change nothing."""
