"""The interface of a training method: how a phase trains.

A new method is one module with one class and one row in `methods.registry`. The class has a name,
a frozen dataclass `Options` with the fields of `phases.N.method_options`, and is built from one.
"""

from typing import Any, Protocol

from keras_transfer.training.objective import PhaseMethod


class Method(PhaseMethod, Protocol):
    """The training method of one phase, with its options. Immutable."""

    @property
    def options(self) -> Any:
        """A frozen dataclass with the checked `method_options`."""
