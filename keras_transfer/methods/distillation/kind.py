"""The interface of a kind of distillation: what a student's outputs are compared with.

A new kind is one module with one class and one row in `methods.distillation.registry`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

import keras
import numpy as np
from keras import ops

from keras_transfer.backbones.graph import Call
from keras_transfer.models.cuts import Cut
from keras_transfer.tasks.soft_losses import class_divergences
from keras_transfer.tasks.task import Head, Task

_TINY: Final = 1e-12


SoftLosses = Callable[[Any, Any, float], Any]
"""From logits [B, K] of teacher and student and a temperature to losses [B]."""


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A kind without options."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What the loss of B examples is computed from, all float32 tensors.

    `targets` [B, K] are encoded labels, or one-hot the teacher's most probable class where there is
    no label. `teacher` and `student` are logits [B, K]. The features, [B, D] each, are those of
    `Kind.teacher_cut` and `Kind.student_features`; None for kinds that read none. `soft_losses` and
    `heads` are those of the task.
    """

    targets: Any
    teacher: Any
    student: Any
    temperature: float
    teacher_features: Any = None
    student_features: Any = None
    soft_losses: SoftLosses = class_divergences
    heads: Sequence[Head] = ()


class Kind(Protocol):
    """The loss of the teacher's part, with its options. Immutable."""

    @property
    def name(self) -> str:
        """The row of the registry."""

    @property
    def options(self) -> Any:
        """A frozen dataclass with the checked `kind_options`."""

    @property
    def reads_features(self) -> bool:
        """Whether values of layers below the logits are compared as well."""

    @property
    def needs_images(self) -> bool:
        """Whether phases train on images, and the student also learns from those of `attacked`.

        `student_features` of a batch are its logits of these.
        """

    @property
    def needs_classes(self) -> bool:
        """Whether the loss is defined for single labels only, whose probabilities sum to 1."""

    @property
    def is_convex(self) -> bool:
        """Whether the loss is the divergence of logits with fixed weights, so heads are solved."""

    def check(self, task: Task) -> None:
        """Raise SpecError where the options do not fit the task."""

    def teacher_cut(self, below: Cut) -> Cut:
        """The values of the teacher that are stored and compared, where features are read.

        Args:
            below: the input of its last dense layer, which is stored in any case.

        Raises:
            SpecError: the network has no such values.
        """

    def student_features(self, calls: Sequence[Call], teacher: Cut) -> Any:
        """The student's tensor [B, D] that is compared, where features are read.

        Args:
            calls: of the part of the student that trains. New layers may follow them, which train
                with it and are not kept.
            teacher: what `teacher_cut` gave.

        Raises:
            SpecError: the part has no such values.
        """

    def attacked(self, network: Callable[[Any], Any], images: Any, batch: Batch) -> Any:
        """Other images [B, S, S, C] that the student learns from, where it needs images."""

    def weights(self, teacher: np.ndarray) -> np.ndarray:
        """Factors of the loss, [N, V], for a teacher's probabilities [N, V, K] at T = 1."""

    def progress(self, share: float) -> float:
        """Factor of the teacher's part after this share of the epochs; labels get the rest."""

    def losses(self, batch: Batch) -> Any:
        """The loss of each example, [B]."""


class KindDefaults:
    """Members of `Kind` that most kinds share."""

    reads_features: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    needs_images: ClassVar[bool] = False

    @property
    def is_convex(self) -> bool:
        """No."""
        return False

    def check(self, task: Task) -> None:
        """Nothing to check."""

    def teacher_cut(self, below: Cut) -> Cut:
        """The features below the logits."""
        return below

    def student_features(self, calls: Sequence[Call], teacher: Cut) -> Any:  # noqa: ARG002
        """The input of the last dense layer."""
        dense = [call for call in calls if isinstance(call.operation, keras.layers.Dense)]
        return dense[-1].reads[0]

    def attacked(self, network: Callable[[Any], Any], images: Any, batch: Batch) -> Any:  # noqa: ARG002
        """The same images."""
        return images

    def weights(self, teacher: np.ndarray) -> np.ndarray:
        """All the same."""
        return np.ones(teacher.shape[:2], np.float32)

    def progress(self, share: float) -> float:  # noqa: ARG002
        """1: the teacher counts the same in all epochs."""
        return 1.0


def divergences(batch: Batch) -> Any:
    """How far the student's logits are from the teacher's, [B]; see `Task.soft_losses`."""
    return batch.soft_losses(batch.teacher, batch.student, batch.temperature)


def unit_rows(values: Any) -> Any:
    """Values [..., D] divided by their norms; zeros stay zeros, without a gradient.

    The root has no gradient at 0, which two equal examples have.
    """
    squares = ops.sum(ops.square(values), axis=-1, keepdims=True)
    far = squares > _TINY
    return ops.where(far, values * ops.rsqrt(ops.where(far, squares, 1.0)), 0.0)
