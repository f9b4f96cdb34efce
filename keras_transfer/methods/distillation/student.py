"""The student in training: its loss reads the teacher's columns behind the labels."""

from typing import Any

import keras
from keras import ops

from keras_transfer.backbones.graph import traced
from keras_transfer.methods.distillation.kind import Batch, Kind
from keras_transfer.methods.distillation.soft_targets import NUM_WEIGHTS
from keras_transfer.models.cuts import Cut
from keras_transfer.tasks.task import Task


class DistillationLoss(keras.losses.Loss):
    """Each example's hard weight times the task's loss, plus its soft weight times the kind's.

    Targets are labels [B, K], and in training the columns of `SoftTargets` behind them; without
    these, in validation, it is the task's loss. Predictions are logits [B, K], for kinds that read
    features with these behind them.
    """

    def __init__(self, hard: keras.losses.Loss, kind: Kind, task: Task, temperature: float):
        super().__init__(name="distillation")
        self.hard, self.kind, self.temperature = hard, kind, temperature
        self.num_outputs, self.soft_losses = len(task.names), task.soft_losses
        self.heads = task.heads
        self.layer = getattr(hard, "layer", None)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each example, [B]."""
        labels, student = y_true[:, : self.num_outputs], y_pred[:, : self.num_outputs]
        hard = self.hard.call(labels, student)
        if y_true.shape[-1] == self.num_outputs:
            return hard
        _, hard_weight, soft_weight = self._weights(y_true)
        return hard_weight * hard + soft_weight * self.kind.losses(self.batch(y_true, y_pred))

    def batch(self, y_true: Any, y_pred: Any) -> Batch:
        """What the kind compares, of targets with columns and predictions."""
        number = self.num_outputs
        labels, columns = y_true[:, :number], y_true[:, number + NUM_WEIGHTS :]
        is_labelled, *_ = self._weights(y_true)
        teacher = columns[:, :number]
        guessed = ops.one_hot(ops.argmax(teacher, axis=-1), number, dtype=labels.dtype)
        return Batch(
            targets=ops.where(is_labelled[:, None] > 0, labels, guessed),
            teacher=teacher,
            student=y_pred[:, :number],
            temperature=self.temperature,
            teacher_features=columns[:, number:],
            student_features=y_pred[:, number:],
            soft_losses=self.soft_losses,
            heads=self.heads,
        )

    def _weights(self, y_true: Any) -> list[Any]:
        """The columns of `NUM_WEIGHTS`, [B] each."""
        return [y_true[:, self.num_outputs + n] for n in range(NUM_WEIGHTS)]


class Student(keras.Model):
    """A part of a classifier, whose metrics read labels and logits only.

    Images without a label do not count in them.
    """

    distillation: DistillationLoss

    @property
    def num_outputs(self) -> int:
        """K."""
        return self.distillation.num_outputs

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The compiled loss; in training also of the images that a kind attacks."""
        kind = self.distillation.kind
        if kind.needs_images and y.shape[-1] > self.num_outputs:
            batch = self.distillation.batch(y, y_pred)
            attacked = kind.attacked(lambda images: self(images, training=False), x, batch)
            y_pred = ops.concatenate([y_pred, self(attacked, training=True)], axis=-1)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The compiled metrics and the loss."""
        number = self.num_outputs
        if y.shape[-1] > number and sample_weight is not None:
            sample_weight = sample_weight * y[:, number]
        return super().compute_metrics(x, y[:, :number], y_pred[:, :number], sample_weight)


def make_student(part: keras.Model, loss: DistillationLoss, teacher: Cut) -> Student:
    """The part with the same layers; for kinds that read them its features follow the logits.

    Args:
        teacher: the features of the kind.

    Raises:
        SpecError: the part has no such features.
    """
    inputs, outputs, kind = part.input, part.output, loss.kind
    if kind.reads_features:
        graph, calls = traced(part)
        features = kind.student_features(calls, teacher)
        joined = keras.layers.Concatenate(name="logits_and_features", dtype="float32")
        inputs, outputs = graph.inputs[0], joined([graph.outputs[0], features])
    student = Student(inputs, outputs, name=part.name)
    student.distillation = loss
    return student
