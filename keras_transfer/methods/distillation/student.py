"""The student in training: its loss reads the teacher's columns behind the labels."""

from typing import Any

import keras
from keras import ops

from keras_transfer.backbones.graph import Call
from keras_transfer.methods.distillation.kind import Batch, Kind
from keras_transfer.methods.distillation.soft_targets import NUM_WEIGHTS
from keras_transfer.models.cuts import Cut


class DistillationLoss(keras.losses.Loss):
    """Each example's hard weight times the task's loss, plus its soft weight times the kind's.

    Targets are labels [B, K], and in training the columns of `SoftTargets` behind them; without
    these, in validation, it is the task's loss. Predictions are logits [B, K], for kinds that read
    features with these behind them.
    """

    def __init__(self, hard: keras.losses.Loss, kind: Kind, num_outputs: int, temperature: float):
        super().__init__(name="distillation")
        self.hard, self.kind = hard, kind
        self.num_outputs, self.temperature = num_outputs, temperature

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each example, [B]."""
        number = self.num_outputs
        labels, student = y_true[:, :number], y_pred[:, :number]
        if y_true.shape[-1] == number:
            return self.hard.call(labels, student)
        columns = y_true[:, number:]
        is_labelled, hard_weight, soft_weight = (columns[:, n] for n in range(NUM_WEIGHTS))
        teacher = columns[:, NUM_WEIGHTS : NUM_WEIGHTS + number]
        guessed = ops.one_hot(ops.argmax(teacher, axis=-1), number, dtype=labels.dtype)
        batch = Batch(
            targets=ops.where(is_labelled[:, None] > 0, labels, guessed),
            teacher=teacher,
            student=student,
            temperature=self.temperature,
            teacher_features=columns[:, NUM_WEIGHTS + number :],
            student_features=y_pred[:, number:],
        )
        hard = self.hard.call(labels, student)
        return hard_weight * hard + soft_weight * self.kind.losses(batch)


class Student(keras.Model):
    """A part of a classifier, whose metrics read labels and logits only.

    Images without a label do not count in them.
    """

    num_outputs: int

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The compiled metrics and the loss."""
        number = self.num_outputs
        if y.shape[-1] > number and sample_weight is not None:
            sample_weight = sample_weight * y[:, number]
        return super().compute_metrics(x, y[:, :number], y_pred[:, :number], sample_weight)


def make_student(part: keras.Model, kind: Kind, teacher: Cut) -> Student:
    """The part with the same layers; for kinds that read them its features follow the logits.

    Args:
        teacher: the features of `kind`.

    Raises:
        SpecError: the part has no such features.
    """
    inputs, outputs = part.input, part.output
    if kind.reads_features:
        graph, calls = _traced(part)
        features = kind.student_features(calls, teacher)
        joined = keras.layers.Concatenate(name="logits_and_features", dtype="float32")
        inputs, outputs = graph.inputs[0], joined([graph.outputs[0], features])
    student = Student(inputs, outputs, name=part.name)
    student.num_outputs = part.output_shape[-1]
    return student


def _traced(part: keras.Model) -> tuple[keras.Model, list[Call]]:
    """A new graph of the same layers, and their calls in it."""
    calls = []

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        result = layer(*args, **kwargs)
        calls.append(Call(layer, *map(keras.tree.flatten, (args, result))))
        return result

    # A part that starts inside the classifier has tensors of its own, unlike `layer.input`. Of a
    # compiled model Keras would copy the metrics as well, which need not be registered.
    plain = keras.Model(part.input, part.output)
    graph = keras.models.clone_model(plain, clone_function=lambda layer: layer, call_function=call)
    return graph, calls
