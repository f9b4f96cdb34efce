"""Auto-RGN: learning rates of stages by the relative norms of their gradients.

Before the first epoch, the norm of each stage's gradient over that of its weights is averaged over
five batches. The stage with the largest mean trains at the phase's `learning_rate`, others at their
share of it, in place of `layer_decay`. The source computes the norms again in each epoch, with a
new optimizer; here they are those of the weights before the phase, so that a resumed phase has the
same rates.

Source: Y. Lee et al., "Surgical fine-tuning improves adaptation to distribution shifts", ICLR 2023.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Final

import keras
import numpy as np

from keras_transfer.devices.gradients import variable_gradients
from keras_transfer.errors import SpecError
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec
from keras_transfer.training.objective import Objective, PhaseContext

NUM_BATCHES: Final = 5
"""Batches whose gradients are compared."""


@dataclass(frozen=True, kw_only=True)
class AutoRGNOptions:
    """Auto-RGN has no options."""


@dataclass(frozen=True)
class AutoRGN(MethodDefaults):
    """Trains unfrozen stages, each at a rate by the relative norm of its gradient."""

    options: AutoRGNOptions = field(default_factory=AutoRGNOptions)

    Options: ClassVar = AutoRGNOptions
    name: ClassVar[str] = "auto_rgn"

    def check(self, spec: RunSpec, number: int) -> None:
        """Raise SpecError if the phase trains the head alone, which has one rate."""
        phase = spec.phases[number]
        if phase.unfreeze == HEAD:
            raise SpecError(
                f"phase {phase.name!r} trains one stage, whose rate has nothing to be compared to",
                expected="unfrozen stages of the backbone",
                received=f"phases.{number}.unfreeze={HEAD}",
                fix="set its unfreeze to 'last' or another stage, or use method 'supervised'",
            )

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:
        """The task's loss, with the rates."""
        loss = context.task.loss(context.spec.training)

        def shares(model: keras.Model, batches: Iterable[Any]) -> Mapping[str, float]:
            found = relative_gradients(context.stages, loss, model, batches)
            rates = (f"{name} {phase.learning_rate * one:.1e}" for name, one in found.items())
            context.reporter.info(f"Learning rates of phase {phase.name!r}: {', '.join(rates)}.")
            return found

        return Objective(part, loss, shares=shares)


def relative_gradients(
    stages: Mapping[str, Sequence[keras.layers.Layer]],
    loss: keras.losses.Loss,
    model: keras.Model,
    batches: Iterable[Any],
) -> dict[str, float]:
    """The mean of ‖gradient‖ / ‖weights‖ of each stage that trains, over the largest of them.

    Args:
        batches: (inputs, encoded targets, weights); the first five count. They are read in
            inference mode, so that dropout draws nothing.
    """
    variables = model.trainable_variables
    stage_of = {
        id(variable): name
        for name, layers in stages.items()
        for layer in layers
        for variable in layer.variables
    }
    names = [stage_of.get(id(variable), HEAD) for variable in variables]
    sums: dict[str, float] = defaultdict(float)
    sizes = _norms(names, [np.array(variable) for variable in variables])
    for batch in islice(batches, NUM_BATCHES):
        gradients = _gradients(loss, model, batch)
        for name, norm in _norms(names, gradients).items():
            sums[name] += norm / sizes[name]
    largest = max(sums.values()) or 1.0
    order = [name for name in stages if name in sums]
    return {name: sums[name] / largest for name in order}


def _gradients(loss: keras.losses.Loss, model: keras.Model, batch: Any) -> list[np.ndarray]:
    inputs, targets, weights = batch

    def value() -> Any:
        return loss(targets, model(inputs, training=False), weights)

    return [np.array(one) for one in variable_gradients(value, model.trainable_variables)]


def _norms(names: Sequence[str], values: Sequence[np.ndarray]) -> dict[str, float]:
    """The Euclidean norm of all values of each name."""
    squares: dict[str, float] = defaultdict(float)
    for name, value in zip(names, values, strict=True):
        squares[name] += float(np.sum(np.square(value.astype(np.float64))))
    return {name: square**0.5 for name, square in squares.items()}
