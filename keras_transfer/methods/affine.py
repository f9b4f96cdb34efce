"""Affine: of the trunk only the scales and offsets of BatchNormalization train, and the head.

These are a few percent of a network's weights. Convolutions stay as they are, and so do the means
and variances that BatchNormalization divides by, which a phase with `train_batchnorm` would move.

Source: P. K. Mudrakarta et al., "K for the price of 1: parameter-efficient multi-task and transfer
learning", ICLR 2019.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras

from keras_transfer.errors import SpecError
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec
from keras_transfer.training.objective import Objective, PhaseContext
from keras_transfer.training.phases import is_batchnorm


@dataclass(frozen=True, kw_only=True)
class AffineOptions:
    """Affine training has no options."""


@dataclass(frozen=True)
class Affine(MethodDefaults):
    """Trains the head, and the scales and offsets of BatchNormalization in unfrozen stages."""

    options: AffineOptions = field(default_factory=AffineOptions)

    Options: ClassVar = AffineOptions
    name: ClassVar[str] = "affine"

    def check(self, spec: RunSpec, number: int) -> None:
        """Refuse phases that move statistics, or train nothing but the head."""
        phase = spec.phases[number]
        if phase.train_batchnorm:
            raise SpecError(
                f"phase {phase.name!r} would move the statistics of BatchNormalization",
                expected=f"phases.{number}.train_batchnorm=false with method 'affine'",
                received="true",
                fix="leave it out, or use method 'supervised'",
            )
        if phase.unfreeze == HEAD:
            raise _nothing_to_train(phase, f"phases.{number}.unfreeze={HEAD}")

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:
        """The task's loss, of the part with fixed statistics.

        Raises:
            SpecError: the backbone has no BatchNormalization.
        """
        if not any(map(is_batchnorm, part.layers)):
            raise _nothing_to_train(phase, f"model.backbone={context.spec.model.backbone}")
        loss = context.task.loss(context.spec.training)
        return Objective(_with_fixed_statistics(part), loss, trains=is_batchnorm)


def _nothing_to_train(phase: PhaseSpec, received: str) -> SpecError:
    return SpecError(
        f"phase {phase.name!r} has no scales and offsets to train",
        expected="unfrozen stages of a backbone with BatchNormalization",
        received=received,
        fix="set its unfreeze to 'stem' or another stage, or use method 'supervised'",
    )


class FixedStatistics(keras.layers.Layer):
    """A BatchNormalization layer that trains, but in inference mode.

    Keras has no such state: a layer that trains reads the statistics of the batch, and one that
    does not has no trainable variables. Inside a layer of its own `training=False` is kept.
    """

    def __init__(self, norm: keras.layers.BatchNormalization):
        super().__init__(name=f"{norm.name}_fixed", dtype=norm.dtype_policy)
        self.norm = norm

    def call(self, inputs: Any) -> Any:
        """The normalised inputs, of the same shape."""
        return self.norm(inputs, training=False)


def _with_fixed_statistics(part: keras.Model) -> keras.Model:
    """A graph of the same layers, with `FixedStatistics` around each BatchNormalization."""

    def fixed(layer: Any) -> Any:
        return FixedStatistics(layer) if is_batchnorm(layer) else layer

    def call(layer: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, FixedStatistics):
            return layer(inputs)  # without the mask that a BatchNormalization takes
        return layer(inputs, *args, **kwargs)

    # Of a compiled model Keras would copy the metrics as well.
    plain = keras.Model(part.input, part.output, name=part.name)
    return keras.models.clone_model(plain, clone_function=fixed, call_function=call)
