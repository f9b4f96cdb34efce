"""Single-label classification: every image belongs to exactly one class."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
import numpy as np

from keras_transfer.data.records import Record
from keras_transfer.data.targets import Targets
from keras_transfer.errors import DataError
from keras_transfer.evaluation.intervals import wilson
from keras_transfer.evaluation.metrics import SingleLabelEvaluation, evaluate
from keras_transfer.evaluation.predictions import label_columns, label_row
from keras_transfer.evaluation.results import Headline
from keras_transfer.fields import nearest
from keras_transfer.models.activations import Activation
from keras_transfer.models.head import head_layers
from keras_transfer.specs import ModelSpec, RunSpec, TrainingSpec
from keras_transfer.tasks.task import Monitor


class Accuracy(keras.metrics.CategoricalAccuracy):
    """The share of examples whose most probable class is the true one.

    Copies that fill a batch have weight 0 and do not count; all other examples count once, also
    where the loss has class weights.
    """

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """One-hot labels and logits [B, C], weights [B]."""
        if sample_weight is not None:
            sample_weight = keras.ops.cast(sample_weight > 0, self.dtype)
        return super().update_state(y_true, y_pred, sample_weight)


@dataclass(frozen=True, kw_only=True)
class SingleLabelOptions:
    """A single label has no options."""


@dataclass(frozen=True)
class SingleLabel:
    """The task of naming one of C classes; `names` are the classes in the order of the outputs.

    Values are class indices int64 [N], outputs probabilities float32 [N, C].
    """

    names: tuple[str, ...]
    options: SingleLabelOptions = field(default_factory=SingleLabelOptions)

    Options: ClassVar = SingleLabelOptions
    name: ClassVar[str] = "single_label"
    activation: ClassVar[Activation] = "softmax"
    monitor: ClassVar[Monitor] = Monitor("accuracy", "max", is_share=True)

    @property
    def state(self) -> dict[str, Any]:
        """Nothing: all is known before training."""
        return {}

    @classmethod
    def of(
        cls, records: Sequence[Record], spec: RunSpec, options: SingleLabelOptions
    ) -> "SingleLabel":
        """The task of a source: its classes sorted by name.

        Raises:
            DataError: a label is missing, there are fewer than two classes, two differ only by
                case, or one is not among the training images.
        """
        where = spec.data.path or spec.data.name
        for record in records:
            _check_label(record)
        names = sorted({record.label for record in records})
        _check_classes(names, where)
        _check_every_class_is_trained(records, where)
        return cls(tuple(names), options)

    def targets(self, records: Sequence[Record]) -> Targets:
        """The class of every image; each class is a stratum.

        Raises:
            DataError: an image has no label, or one that is not among the classes.
        """
        index = {name: number for number, name in enumerate(self.names)}
        for record in records:
            _check_label(record)
            if record.label not in index:
                raise DataError(
                    f"{record.path} has a label that is not one of the classes",
                    expected=f"one of {', '.join(self.names)}",
                    received=repr(record.label),
                    fix=nearest(record.label, self.names),
                )
        return Targets.of_classes([index[record.label] for record in records], self.names)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """One-hot, float32 [B, C]."""
        encoded = np.zeros((len(values), len(self.names)), np.float32)
        encoded[np.arange(len(values)), values] = 1
        return encoded

    def head(self, spec: ModelSpec, seed: int) -> list[keras.layers.Layer]:
        """The default head with one output per class."""
        return head_layers(spec, num_outputs=len(self.names), seed=seed)

    def loss(self, training: TrainingSpec) -> keras.losses.Loss:
        """Cross-entropy of logits."""
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=training.label_smoothing
        )

    def metrics(self) -> list[keras.metrics.Metric]:
        """The accuracy."""
        return [Accuracy(name="accuracy")]

    def example_weights(self, values: np.ndarray, training: TrainingSpec) -> np.ndarray:
        """1 for every example, or n / (C n_c) for class c where class weights are balanced.

        Raises:
            DataError: weights are balanced and a class has no example.
        """
        if training.class_weights == "none":
            return np.ones(len(values), np.float32)
        num_classes = len(self.names)
        Targets.of_classes(values, self.names).check_balanced("training.class_weights")
        counts = np.bincount(values, minlength=num_classes)
        weights: np.ndarray = (len(values) / (num_classes * counts)).astype(np.float32)[values]
        return weights

    def example_scores(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """1 where the most probable class is the true one, else 0."""
        return (outputs.argmax(axis=1) == values).astype(np.float64)

    def example_losses(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Log losses in nats."""
        of_label = outputs[np.arange(len(values)), values].astype(np.float64)
        # Outputs are float32, so a probability of 0 is at most its smallest number.
        losses: np.ndarray = -np.log(np.maximum(of_label, np.finfo(np.float32).tiny))
        return losses

    def headline(self, values: np.ndarray, outputs: np.ndarray) -> Headline:
        """Accuracy with Wilson's interval."""
        right = int(self.example_scores(values, outputs).sum())
        return Headline("accuracy", right / len(values), wilson(right, len(values)))

    def evaluate(
        self, values: np.ndarray, outputs: np.ndarray, *, seed: int = 0
    ) -> SingleLabelEvaluation:
        """See `evaluation.metrics.evaluate`."""
        return evaluate(values, outputs, self.names, seed=seed)

    def fitted(self, values: np.ndarray, outputs: np.ndarray) -> "SingleLabel":  # noqa: ARG002
        """The same: nothing is chosen after training."""
        return self

    def columns(self, *, labelled: bool = False) -> list[str]:
        """Prediction, confidence and all probabilities; label and correctness where labelled."""
        return label_columns(self.names, labelled=labelled)

    def row(self, outputs: np.ndarray, value: int | None = None) -> list[str | float]:
        """The cells of `columns`."""
        return label_row(outputs, self.names, value)


def _check_label(record: Record) -> None:
    if len(record.target) != 1 or not record.target[0]:
        raise DataError(
            f"{record.path} does not have one label",
            expected="the name of one class for each image",
            received=", ".join(map(repr, record.target)) or "nothing",
            fix="fill the cell or remove the line; with several columns in data.label_column "
            "choose another task",
        )


def _check_classes(class_names: Sequence[str], where: str) -> None:
    if len(class_names) < 2:
        raise DataError(
            f"{where} has fewer than two classes",
            expected="images of at least two classes",
            received=f"one class only, {class_names[0]!r}" if class_names else "no class",
            fix="add a second class, or point data.path one level up or down",
        )
    by_folded_name: dict[str, str] = {}
    for name in class_names:
        twin = by_folded_name.setdefault(name.casefold(), name)
        if twin != name:
            raise DataError(
                f"{where} has two classes whose names differ only by case",
                expected="one spelling for each class",
                received=f"{twin!r} and {name!r}",
                fix="merge the two, or rename one of them",
            )


def _check_every_class_is_trained(items: Sequence[Record], where: str) -> None:
    trained = {record.label for record in items if record.split in (None, "train")}
    for record in items:
        if record.label not in trained:
            raise DataError(
                f"class {record.label!r} of {where} is missing from the training split",
                expected=f"one of training's classes, {', '.join(sorted(trained)) or 'none'}",
                received=f"{record.label!r} in split {record.split!r} only, as in {record.path}",
                fix="correct the label, or add training images of the class",
            )
