"""The interface of a training method: how a phase trains.

A new method is one module with one class and one row in `methods.registry`. The class has a name,
a frozen dataclass `Options` with the fields of `phases.N.method_options`, and is built from one. It
inherits `MethodDefaults`, and replaces what differs.
"""

from typing import Any, Protocol

import keras

from keras_transfer.backbones.adapters import Adapters
from keras_transfer.specs import PhaseSpec, RunSpec
from keras_transfer.training.objective import PhaseMethod


class Method(PhaseMethod, Protocol):
    """The training method of one phase, with its options. Immutable."""

    @property
    def options(self) -> Any:
        """A frozen dataclass with the checked `method_options`."""

    @property
    def trains_once(self) -> bool:
        """Whether studies and searches, which train on the same images repeatedly, are refused."""

    def is_solved(self, spec: RunSpec, phase: PhaseSpec) -> bool:
        """Whether a phase of the spec is surely solved: no seed, epochs or rates change its result.

        Searches then leave out what has no effect; False only makes them train more.
        """

    def check(self, spec: RunSpec, number: int) -> None:
        """Check that the method can train phase `number` of a spec, before any image is read.

        Raises:
            SpecError: it cannot, other fields contradict it, or another phase would undo it.
        """


class MethodDefaults:
    """Members of `Method` that most methods share."""

    @property
    def needs_images(self) -> bool:
        """False: stored features are enough."""
        return False

    @property
    def uses_unlabelled(self) -> bool:
        """False: only images with labels train."""
        return False

    @property
    def trains_once(self) -> bool:
        """False: it may train any number of times."""
        return False

    def is_solved(self, spec: RunSpec, phase: PhaseSpec) -> bool:  # noqa: ARG002
        """False: it trains step by step."""
        return False

    def check(self, spec: RunSpec, number: int) -> None:
        """Accept every spec."""

    def num_views(self, phase: PhaseSpec, available: int) -> int:
        """One view in each epoch."""
        return min(available, phase.epochs)

    def adapters(self, phase: PhaseSpec, number: int) -> Adapters | None:  # noqa: ARG002
        """None: it trains the network as it is."""
        return None

    def finish(self, model: keras.Model) -> None:
        """Change nothing."""
