"""Surgical fine-tuning: one stage of the trunk trains, and the head; all others stay frozen.

The stage is the one that `unfreeze` names. Low stages suit other kinds of images (noise, contrast),
high ones other classes. The stage trains at `layer_decay` times the head's rate.

Source: Y. Lee et al., "Surgical fine-tuning improves adaptation to distribution shifts", ICLR 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import keras

from keras_transfer.backbones.stages import stages_from
from keras_transfer.errors import SpecError
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec
from keras_transfer.training.objective import Objective, PhaseContext
from keras_transfer.training.phases import is_batchnorm


@dataclass(frozen=True, kw_only=True)
class SurgicalOptions:
    """Surgical fine-tuning has no options."""


@dataclass(frozen=True)
class Surgical(MethodDefaults):
    """Trains the stage that `unfreeze` names, and the head."""

    options: SurgicalOptions = field(default_factory=SurgicalOptions)

    Options: ClassVar = SurgicalOptions
    name: ClassVar[str] = "surgical"

    def check(self, spec: RunSpec, number: int) -> None:
        """Raise SpecError if the phase names no stage of the trunk."""
        phase = spec.phases[number]
        if phase.unfreeze == HEAD:
            raise _nothing_to_train(phase, f"phases.{number}.unfreeze={HEAD}")

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:
        """The task's loss; of the trunk one stage trains.

        Raises:
            SpecError: the stage has nothing that could train.
        """
        (stage, *_) = stages_from(phase.unfreeze, list(context.stages), field="unfreeze")
        chosen = trained(context.stages[stage], phase)
        if not any(layer.weights for layer in chosen):
            raise _nothing_to_train(phase, f"unfreeze={phase.unfreeze}, without weights")
        kept, shares = {id(layer) for layer in chosen}, {stage: phase.layer_decay, HEAD: 1.0}
        return Objective(
            part,
            context.task.loss(context.spec.training),
            trains=lambda layer: id(layer) in kept,
            shares=lambda model, batches: shares,  # noqa: ARG005
        )


def trained(layers: Sequence[keras.layers.Layer], phase: PhaseSpec) -> list[keras.layers.Layer]:
    """Those of a stage that a phase trains."""
    return [layer for layer in layers if phase.train_batchnorm or not is_batchnorm(layer)]


def _nothing_to_train(phase: PhaseSpec, received: str) -> SpecError:
    return SpecError(
        f"phase {phase.name!r} has no stage to train",
        expected="the name of one stage of the backbone",
        received=received,
        fix="set its unfreeze to 'last' or to another stage, or use method 'supervised'",
    )
