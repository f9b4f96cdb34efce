"""Adversarial distillation: the student answers attacked images as the teacher answers clean ones.

Sources: M. Goldblum et al., "Adversarially robust distillation" (ARD), AAAI 2020. B. Zi et al.,
"Revisiting adversarial robustness distillation" (RSLAD), ICCV 2021.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import keras
from keras import ops

from keras_transfer.devices.gradients import input_gradient
from keras_transfer.fields import option
from keras_transfer.methods.distillation.attack import projected_gradients
from keras_transfer.methods.distillation.kind import Batch, KindDefaults, divergences


@dataclass(frozen=True, kw_only=True)
class AdversarialOptions:
    """Options of adversarial distillation; pixels are grey levels from 0 to 255."""

    target: Literal["teacher", "labels"] = option(
        "teacher", "what an attack leads away from: the teacher's outputs (RSLAD) or labels (ARD)"
    )
    clean: float = option(1 / 6, "share of the images that are not attacked", low=0, high=1)
    epsilon: float = option(8.0, "largest change of a pixel", low=0, high=255)
    step: float = option(2.0, "change of a pixel in a step", low=0, high=255)
    steps: int = option(10, "steps of an attack", low=1)


@dataclass(frozen=True)
class Adversarial(KindDefaults):
    """(1 - clean) times the divergence on attacked images plus clean times that on the others.

    The teacher has seen the images as they are in both cases. ARD is target=labels with clean=0,
    RSLAD the default.
    """

    options: AdversarialOptions = field(default_factory=AdversarialOptions)

    Options: ClassVar = AdversarialOptions
    name: ClassVar[str] = "adversarial"
    needs_classes: ClassVar[bool] = True
    needs_images: ClassVar[bool] = True

    def attacked(self, network: Callable[[Any], Any], images: Any, batch: Batch) -> Any:
        """Images [B, S, S, C], each changed within its bounds to increase the student's loss.

        Args:
            network: from images to logits, in inference mode.
        """

        def gradient(changed: Any) -> Any:
            return input_gradient(lambda some: self._harm(network(some), batch), changed)

        options = self.options
        changed = projected_gradients(
            gradient,
            images,
            epsilon=options.epsilon,
            step=options.step,
            steps=options.steps,
        )
        return ops.stop_gradient(changed)

    def _harm(self, student: Any, batch: Batch) -> Any:
        """What an attack increases, [B], for logits [B, K] of attacked images."""
        if self.options.target == "labels":
            return keras.losses.categorical_crossentropy(batch.targets, student, from_logits=True)
        return batch.soft_losses(batch.teacher, student, batch.temperature)

    def losses(self, batch: Batch) -> Any:
        """See the class; the features of the student are its logits of attacked images."""
        attacked = batch.soft_losses(batch.teacher, batch.student_features, batch.temperature)
        clean = self.options.clean
        return clean * divergences(batch) + (1 - clean) * attacked
