"""EMA: the weights are an exponential moving average of those of all steps.

The average is what validation sees after each epoch, what the best epoch is chosen by, and what the
phase leaves; training goes on with the weights themselves.

Source: B. Polyak and A. Juditsky, "Acceleration of stochastic approximation by averaging", SIAM
Journal on Control and Optimization 30, 1992.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import keras

from keras_transfer.fields import option
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import PhaseSpec
from keras_transfer.training.objective import Objective, PhaseContext


@dataclass(frozen=True, kw_only=True)
class EMAOptions:
    """Options of moving averages."""

    epochs: float = option(
        1.0, "that the average covers: after so many, a step counts 1/e of a new one", low=0.01
    )


@dataclass(frozen=True)
class EMA(MethodDefaults):
    """Trains on the task's loss, and leaves a moving average of the weights."""

    options: EMAOptions = field(default_factory=EMAOptions)

    Options: ClassVar = EMAOptions
    name: ClassVar[str] = "ema"

    def prepare(
        self,
        context: PhaseContext,
        phase: PhaseSpec,  # noqa: ARG002
        part: keras.Model,
    ) -> Objective:
        """The task's loss, with the average."""
        loss = context.task.loss(context.spec.training)
        return Objective(part, loss, average_epochs=self.options.epochs)
