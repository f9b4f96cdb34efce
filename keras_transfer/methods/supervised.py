"""Supervised training: the task's loss on unchanged targets."""

from dataclasses import dataclass, field
from typing import ClassVar

import keras

from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import PhaseSpec
from keras_transfer.training.objective import Objective, PhaseContext


@dataclass(frozen=True, kw_only=True)
class SupervisedOptions:
    """Supervised training has no options."""


@dataclass(frozen=True)
class Supervised(MethodDefaults):
    """Trains on the task's loss."""

    options: SupervisedOptions = field(default_factory=SupervisedOptions)

    Options: ClassVar = SupervisedOptions
    name: ClassVar[str] = "supervised"

    def prepare(
        self,
        context: PhaseContext,
        phase: PhaseSpec,  # noqa: ARG002
        part: keras.Model,
    ) -> Objective:
        """The task's loss with the settings of the spec."""
        return Objective(part, context.task.loss(context.spec.training))
