"""Exact heads: the last layer is solved on stored features instead of trained step by step.

See `tasks.linear_head` for what is minimised. Where more than a linear head trains, by dropout or
unfrozen stages, training starts at the solution. A head with a hidden layer has no exact solution
and is trained from random weights.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import keras
import numpy as np

from keras_transfer.errors import SpecError
from keras_transfer.fields import option
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead
from keras_transfer.training.objective import Objective, PhaseContext


@dataclass(frozen=True, kw_only=True)
class ExactOptions:
    """Options of an exact head."""

    strength: float | None = option(
        None,
        "C, the weight of the data against the penalty on the weights (none = 0.03, or 0.1 for "
        "fewer than 100 images); of a regression the penalty (none = chosen by leave-one-out)",
        low=1e-6,
        high=1e6,
    )
    cross_validate: bool = option(
        False, "choose C from 0.01, 0.03, … 3 by the loss in five folds of training images"
    )

    def __post_init__(self) -> None:
        if self.cross_validate and self.strength is not None:
            raise SpecError(
                "the strength of an exact head is both given and to be chosen",
                expected="either strength=… or cross_validate=true",
                received=f"strength={self.strength:g} and cross_validate=true",
                fix="remove one of them from phases.N.method_options",
            )


@dataclass(frozen=True)
class Exact(MethodDefaults):
    """Solves the head of a linear classifier, and continues by `fit` where more trains."""

    options: ExactOptions = field(default_factory=ExactOptions)

    Options: ClassVar = ExactOptions
    name: ClassVar[str] = "exact"

    def num_views(self, phase: PhaseSpec, available: int) -> int:  # noqa: ARG002
        """All of them: the solution is that of all views together."""
        return available

    def is_solved(self, spec: RunSpec, phase: PhaseSpec) -> bool:
        """Whether only a linear head trains, and the task surely has a solution."""
        # Balanced sampling of several labels has none.
        has_solution = spec.task == "single_label" or spec.training.sampling == "natural"
        return has_solution and spec.model.head == "linear" and not _fits(spec, phase)

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:
        """The solution of the head, and the task's loss where it does not end there."""
        spec, task = context.spec, context.task
        loss = task.loss(spec.training)
        if spec.model.head != "linear":
            context.reporter.info(
                f"Phase {phase.name!r} trains from random weights: a head with a hidden layer has "
                "no exact solution."
            )
            return Objective(part, loss)

        def solve(features: HeadFeatures, values: np.ndarray) -> LinearHead | None:
            return task.solve_head(features, values, spec.training, strengths=strengths)

        own = () if self.options.strength is None else (self.options.strength,)
        strengths = task.strengths if self.options.cross_validate else own
        return Objective(part, loss, solve=solve, fits=_fits(spec, phase))


def _fits(spec: RunSpec, phase: PhaseSpec) -> bool:
    """Whether more than a linear head trains, so that the solution is only the start."""
    return phase.unfreeze != HEAD or spec.model.dropout > 0
