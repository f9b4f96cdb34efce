"""L2-SP: training that is held near the weights with which the phase begins.

The loss of a training batch is the task's, plus

    strength / 2 · ‖w - w₀‖²  +  head_strength / 2 · ‖v‖²

with the trunk's weights w that train, their values w₀ before the phase, and the head's kernels v,
which begin at random or at a solution and are held near 0. Both penalties stand in place of the
phase's decoupled weight decay, which would pull the trunk to 0. Weights that do not train drop out.
Losses of validation have no penalty.

Source: X. Li, Y. Grandvalet and F. Davoine, "Explicit inductive bias for transfer learning with
convolutional networks", ICML 2018.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_transfer.backbones.graph import is_random_state
from keras_transfer.devices.strategy import current
from keras_transfer.errors import SpecError
from keras_transfer.fields import option
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import PhaseSpec
from keras_transfer.training.objective import Objective, PhaseContext
from keras_transfer.training.optimizers import UNDECAYED


@dataclass(frozen=True, kw_only=True)
class L2SPOptions:
    """Options of L2-SP."""

    strength: float = option(
        0.01, "of the penalty on how far the backbone's weights move", low=0, high=1e6
    )
    head_strength: float = option(
        0.01, "of the penalty on the size of the head's kernels", low=0, high=1e6
    )

    def __post_init__(self) -> None:
        if not self.strength and not self.head_strength:
            raise SpecError(
                "method 'l2_sp' would penalise nothing",
                expected="strength or head_strength above 0",
                received="0 for both",
                fix="set phases.N.method_options.strength=0.01, or phases.N.method=supervised",
            )


@dataclass(frozen=True)
class L2SP(MethodDefaults):
    """Trains on the task's loss and on the distance to the weights before the phase."""

    options: L2SPOptions = field(default_factory=L2SPOptions)

    Options: ClassVar = L2SPOptions
    name: ClassVar[str] = "l2_sp"

    def prepare(
        self,
        context: PhaseContext,
        phase: PhaseSpec,  # noqa: ARG002
        part: keras.Model,
    ) -> Objective:
        """The task's loss and the penalties, with the present weights of the trunk as w₀.

        A resumed phase is prepared with the weights that earlier phases left: the same w₀.
        """
        head = {id(v): v.name for layer in context.head for v in layer.variables}
        kernels = frozenset(key for key, name in head.items() if name not in UNDECAYED)
        start = {
            id(variable): ops.convert_to_tensor(np.array(variable))
            for variable in part.variables
            if id(variable) not in head and not is_random_state(variable)
        }
        penalised = PenalisedModel(part.input, part.output, name=part.name)
        penalised.penalty = Penalty(self.options, start, kernels)
        loss = context.task.loss(context.spec.training)
        return Objective(penalised, loss, decays=False)


@dataclass(frozen=True, eq=False)
class Penalty:
    """Both penalties.

    `start` has w₀ of the trunk's variables by their `id`, and `kernels` the `id`s of the head's.
    """

    options: L2SPOptions
    start: Mapping[int, Any]
    kernels: Set[int]

    def __call__(self, variables: Sequence[keras.Variable]) -> Any:
        """The penalty of the variables that train, a scalar.

        A sum of squares, not a norm: the gradient of a norm at w = w₀ is not a number.
        """
        moved, size = ops.zeros(()), ops.zeros(())
        for variable in variables:
            if id(variable) in self.start:
                moved += ops.sum(ops.square(variable - self.start[id(variable)]))
            elif id(variable) in self.kernels:
                size += ops.sum(ops.square(variable))
        return self.options.strength / 2 * moved + self.options.head_strength / 2 * size


class PenalisedModel(keras.Model):
    """A part of a classifier, with a penalty in its training loss."""

    penalty: Penalty

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The compiled loss; in training with the penalty."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        return loss + self.penalty(self.trainable_variables) / current().num_replicas
