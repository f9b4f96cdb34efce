"""Adapters: small new layers between the blocks of a trunk train, and the head; the trunk does not.

The network has them from its start, with the outputs that it has without them. See
`backbones.adapters` for what they are and where they stand.

Source: N. Houlsby et al., "Parameter-efficient transfer learning for NLP", ICML 2019.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import keras

from keras_transfer.backbones.adapters import Adapters
from keras_transfer.errors import SpecError
from keras_transfer.fields import option
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec
from keras_transfer.training.objective import Objective, PhaseContext


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Options of adapters."""

    share: float = option(
        0.04, "most weights of all adapters, as a share of the backbone's", low=1e-4, high=1
    )


@dataclass(frozen=True)
class AdapterTraining(MethodDefaults):
    """Trains the head, and adapters behind the blocks of unfrozen stages."""

    options: AdapterOptions = field(default_factory=AdapterOptions)

    Options: ClassVar = AdapterOptions
    name: ClassVar[str] = "adapters"

    def check(self, spec: RunSpec, number: int) -> None:
        """Refuse phases without a trunk to adapt, or with other adapters than an earlier one."""
        phase = spec.phases[number]
        if phase.unfreeze == HEAD or phase.train_batchnorm:
            raise SpecError(
                f"phase {phase.name!r} trains adapters between frozen blocks",
                expected=f"phases.{number}.unfreeze=last or lower, and train_batchnorm=false",
                received=f"unfreeze={phase.unfreeze}, train_batchnorm={phase.train_batchnorm}",
                fix=f"set phases.{number}.unfreeze=last phases.{number}.train_batchnorm=false, or "
                "use method 'supervised'",
            )
        same = (phase.unfreeze, phase.method_options)
        for other in spec.phases[:number]:
            if other.method == self.name and (other.unfreeze, other.method_options) != same:
                raise SpecError(
                    f"phases {other.name!r} and {phase.name!r} would need different adapters",
                    expected="the same unfreeze and method_options in all phases by 'adapters'",
                    received=f"{other.unfreeze} {dict(other.method_options)} and "
                    f"{phase.unfreeze} {dict(phase.method_options)}",
                    fix=f"set those of phases.{number} to those of phase {other.name!r}",
                )

    def adapters(self, phase: PhaseSpec, number: int) -> Adapters:
        """Adapters of the unfrozen stages."""
        return Adapters(phase.unfreeze, self.options.share, f"phases.{number}.unfreeze")

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:  # noqa: ARG002
        """The task's loss, of the part as it is."""
        loss = context.task.loss(context.spec.training)
        return Objective(part, loss, trains=lambda layer: layer.name in context.added)
