"""Answers for attacked images of the test split, where the student learned from such images.

The attack has the bounds and steps of kind 'adversarial', knows the attacked network, and leads it
away from the true labels. See `methods.distillation.attack`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import keras
import numpy as np
from keras import ops

from keras_transfer.devices.gradients import compiled, input_gradient
from keras_transfer.devices.graphs import full_float32
from keras_transfer.experiments.distill.settings import DISTILL
from keras_transfer.methods.distillation.adversarial import Adversarial, AdversarialOptions
from keras_transfer.methods.distillation.attack import projected_gradients
from keras_transfer.methods.distillation.registry import make_kind
from keras_transfer.methods.distillation.teacher import Teacher
from keras_transfer.models.activations import activate
from keras_transfer.models.forward import BATCH_SIZE
from keras_transfer.specs import RunSpec
from keras_transfer.tasks.task import Task

MOST_IMAGES: Final = 200
"""Each attacked image costs a network as much as training on it in `steps` epochs."""
_TINY: Final = 1e-12

Network = Callable[[Any], Any]
"""From pixels float32 [B, S, S, C], 0-255, to logits [B, K], as tensors, in inference mode."""


@dataclass(frozen=True, eq=False)
class Attack:
    """An attack on M images; `places` are theirs in the test split, `targets` [M, K] one-hot."""

    options: AdversarialOptions
    places: np.ndarray
    targets: np.ndarray

    def outputs(self, network: Network, pixels: np.ndarray) -> np.ndarray:
        """The network's probabilities for its own attacked images, float32 [M, K].

        Args:
            pixels: uint8 [M, S, S, C], those of the images.
        """

        def loss(images: Any, targets: Any) -> Any:
            return keras.losses.categorical_crossentropy(targets, network(images), from_logits=True)

        gradient = compiled(
            lambda images, targets: input_gradient(lambda one: loss(one, targets), images)
        )
        answer, logits = compiled(network), []
        with full_float32():
            for start in range(0, len(pixels), BATCH_SIZE):
                # All batches have one shape, for which the graphs are compiled.
                batch, targets = (
                    np.resize(part[start : start + BATCH_SIZE], (BATCH_SIZE, *part.shape[1:]))
                    for part in (np.asarray(pixels, np.float32), self.targets)
                )
                changed = projected_gradients(
                    functools.partial(gradient, targets=ops.convert_to_tensor(targets)),
                    batch,
                    epsilon=self.options.epsilon,
                    step=self.options.step,
                    steps=self.options.steps,
                )
                logits.append(ops.convert_to_numpy(answer(changed)))
        return activate(np.concatenate(logits)[: len(pixels)], "softmax")


def find_attack(spec: RunSpec, task: Task, values: np.ndarray) -> Attack | None:
    """The attack of the spec's last phase by kind 'adversarial'; None without one.

    Args:
        values: labels [N] of the test split. Of more than `MOST_IMAGES` images some are attacked,
            at equal distances.
    """
    kinds = [
        make_kind(phase.method_options["kind"], phase.method_options.get("kind_options", {}))
        for phase in spec.phases
        if phase.method == DISTILL and "kind" in phase.method_options
    ]
    found = [kind for kind in kinds if isinstance(kind, Adversarial)]
    if not found or not len(values):
        return None
    places = np.linspace(0, len(values) - 1, min(len(values), MOST_IMAGES)).round().astype(int)
    return Attack(found[-1].options, places, task.encode(values[places]))


def network_of(teachers: Sequence[Teacher]) -> Network:
    """One network that gives the logarithm of the teachers' mean probabilities."""
    each = [_logits_of(teacher) for teacher in teachers]
    if len(each) == 1:
        return each[0]

    def network(pixels: Any) -> Any:
        logs = [ops.log_softmax(one(pixels), axis=-1) for one in each]
        return ops.logsumexp(ops.stack(logs), axis=0)

    return network


def _logits_of(teacher: Teacher) -> Network:
    """Like `Teacher.logits`, of images: no softmax, whose gradients vanish, is in between."""
    below = keras.Model(teacher.cut.model.input, teacher.cut.tensor)

    def network(pixels: Any) -> Any:
        values = below(pixels, training=False)
        if teacher.kernel is not None:
            return ops.matmul(values, teacher.kernel) + teacher.bias
        is_share = teacher.activation != "linear"
        return ops.log(ops.maximum(values, _TINY)) if is_share else values

    return network
