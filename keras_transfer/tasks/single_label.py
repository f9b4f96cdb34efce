"""Single-label classification: every image belongs to exactly one class."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import keras
import numpy as np

from keras_transfer.data.labels import suspect_task
from keras_transfer.data.records import Record
from keras_transfer.data.targets import Targets
from keras_transfer.errors import DataError, enumerated
from keras_transfer.evaluation.intervals import wilson
from keras_transfer.evaluation.metrics import SingleLabelEvaluation, evaluate
from keras_transfer.evaluation.predictions import (
    label_columns,
    label_row,
    most_confident_mistakes,
)
from keras_transfer.evaluation.results import Headline, Table
from keras_transfer.fields import nearest
from keras_transfer.models.activations import Activation
from keras_transfer.models.head import head_layers
from keras_transfer.specs import DataSpec, ModelSpec, RunSpec, TrainingSpec
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead, solve_softmax
from keras_transfer.tasks.task import CardText, Draw, Monitor, TaskDefaults, check_spelling

if TYPE_CHECKING:
    import tensorflow as tf

NUM_TOP: Final = 5
"""Number of the most probable classes that are served by name."""

SMOOTHING: Final = 0.1
"""Default label smoothing. It gained 0.6 points (fine-tuning MobileNet α 0.25 on 800 flowers, four
folds). Exact heads are solved without it."""

FEW_IMAGES: Final = 20
"""Figures of a class with fewer test images are imprecise."""

_MOST_NAMED: Final = 20
_MUCH_OFF: Final = 0.05
_SUM_TOLERANCE: Final = 0.02
"""Tolerance for the sum of quantised probabilities, which are multiples of 1/256."""


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
class SingleLabel(TaskDefaults):
    """Classification into one of C classes; `names` are the classes in the order of the outputs.

    Values are class indices int64 [N], outputs probabilities float32 [N, C].
    """

    names: tuple[str, ...]
    options: SingleLabelOptions = field(default_factory=SingleLabelOptions)

    Options: ClassVar = SingleLabelOptions
    name: ClassVar[str] = "single_label"
    activation: ClassVar[Activation] = "softmax"
    monitor: ClassVar[Monitor] = Monitor("accuracy", "max", is_share=True)

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
        unknown = sorted({one.label for one in records if one.label not in index})
        if unknown:
            example = next(one.path for one in records if one.label == unknown[0])
            raise DataError(
                f"images have labels that are not among the model's {len(self.names)} classes",
                expected=f"labels among {enumerated(self.names, _MOST_NAMED)}",
                received=f"{enumerated(list(map(repr, unknown)), _MOST_NAMED)}, as of {example}",
                fix=nearest(
                    unknown[0],
                    self.names,
                    otherwise="leave these images out; `extend` makes a run that knows their "
                    "classes",
                ),
            )
        return Targets.of_classes([index[record.label] for record in records], self.names)

    def notes(self, records: Sequence[Record], spec: DataSpec) -> Sequence[str]:
        """Sentences where the labels of a table look like several labels, or like numbers."""
        return suspect_task({record.label for record in records}) if spec.source == "csv" else ()

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
        smoothing = training.label_smoothing
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=SMOOTHING if smoothing is None else smoothing
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

    def solve_head(
        self,
        features: HeadFeatures,
        values: np.ndarray,
        training: TrainingSpec,
        *,
        strengths: tuple[float, ...] = (),
    ) -> LinearHead:
        """Multinomial logistic regression; `training.sampling=balanced` weighs classes equally.

        Raises:
            DataError: as `example_weights`, or a feature is not finite.
        """
        if training.sampling == "balanced":
            training = replace(training, class_weights="balanced")
        weights = self.example_weights(values, training)
        return solve_softmax(features, self.encode(values), weights, strengths=strengths)

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

    def columns(self, *, labelled: bool = False) -> list[str]:
        """Prediction, confidence, probabilities; where labelled also `label` and `correct`."""
        return label_columns(self.names, labelled=labelled)

    def row(self, outputs: np.ndarray, value: int | None = None) -> list[Any]:
        """The cells of `columns`."""
        return label_row(outputs, self.names, value)

    def decided(self, outputs: np.ndarray) -> tuple[str, ...]:
        """The most probable class."""
        return (self.names[outputs.argmax()],)

    def figures(
        self,
        values: np.ndarray,
        outputs: np.ndarray,
        evaluation: SingleLabelEvaluation,
        *,
        image: Callable[[int], np.ndarray],
        files: Sequence[str],
    ) -> dict[str, Draw]:
        """The confusion matrix and the most confident mistakes."""
        # Imported here because drawing loads matplotlib, which training does not need.
        from keras_transfer.evaluation.plots import Mistake, draw_confusion, draw_mistakes

        mistakes = [
            Mistake(
                pixels=image(row),
                label=self.names[values[row]],
                prediction=self.names[int(outputs[row].argmax())],
                confidence=float(outputs[row].max()),
                file=files[row],
            )
            for row in most_confident_mistakes(values, outputs)
        ]
        num_wrong = int(np.sum(outputs.argmax(axis=1) != values))
        return {
            "confusion.png": lambda file: draw_confusion(evaluation.confusion, self.names, file),
            "mistakes.png": lambda file: draw_mistakes(
                mistakes, file, num_wrong=num_wrong, num_examples=len(values)
            ),
        }

    def card(self, evaluation: SingleLabelEvaluation) -> CardText:
        """Accuracy, figures by class, calibration, and the limits that follow from them."""
        few = len(self.names) <= _MOST_NAMED
        return CardText(
            predicts="one of " + (", ".join(self.names) if few else f"{len(self.names)} classes"),
            purpose="Classifying images that show one of its classes.",
            quality=_card_quality(evaluation),
            tables=[_card_table(evaluation)],
            limits=_card_limits(evaluation, self.names),
            figures=_card_figures(evaluation),
        )

    def served(self, outputs: "tf.Tensor") -> "dict[str, tf.Tensor]":
        """Probabilities, and the highest ones with their columns."""
        import tensorflow as tf

        best, indices = tf.math.top_k(outputs, k=min(NUM_TOP, len(self.names)))
        return {"probabilities": outputs, "top_class_indices": indices, "top_probabilities": best}

    def served_names(self, served: "dict[str, tf.Tensor]") -> "dict[str, tf.Tensor]":
        """Label, all names, and the most probable classes by name."""
        import tensorflow as tf

        names, top = tf.constant(list(self.names)), served["top_class_indices"]
        return {
            "label": tf.gather(names, top[:, 0]),
            "class_names": tf.tile(names[tf.newaxis], [tf.shape(top)[0], 1]),
            "probabilities": served["probabilities"],
            "top_class_names": tf.gather(names, top),
            "top_probabilities": served["top_probabilities"],
        }

    def decision(self, outputs: "tf.Tensor") -> "tf.Tensor":
        """The most probable class."""
        import tensorflow as tf

        return tf.gather(tf.constant(list(self.names)), tf.argmax(outputs, axis=-1))

    def agrees(self, outputs: np.ndarray, expected: np.ndarray, *, margin: float) -> np.ndarray:
        """Whether the most probable classes are the same, or a tie."""
        chosen = expected[np.arange(len(expected)), outputs.argmax(axis=1)]
        result: np.ndarray = expected.max(axis=1) - chosen <= margin
        return result

    def inconsistency(self, outputs: np.ndarray) -> str:
        """Probabilities must sum to 1."""
        off = float(np.abs(outputs.sum(axis=1) - 1).max())
        if off > _SUM_TOLERANCE:
            return f"the sum of its probabilities differs from 1 by {off:.2g}"
        return ""

    def contradictions(self, served: Mapping[str, np.ndarray]) -> list[str]:
        """Names, label and top classes must follow from the probabilities."""
        probabilities, top = served["probabilities"], served["top_probabilities"]
        column = {name: number for number, name in enumerate(self.names)}
        labels = [column.get(label, 0) for label in served["label"]]
        best = np.sort(probabilities, axis=1)[:, ::-1][:, : top.shape[1]]
        found = []
        if any(list(row) != list(self.names) for row in served["class_names"]):
            found.append("class_names are not those of the model")
        if not np.array_equal(best, top):
            found.append("top_probabilities are not the highest ones")
        if not np.array_equal(served["top_class_names"][:, 0], served["label"]):
            found.append("the first of top_class_names is not the label")
        if not np.array_equal(probabilities[np.arange(len(labels)), labels], best[:, 0]):
            found.append("label is not the most probable class")
        return found


def _card_figures(test: SingleLabelEvaluation) -> dict[str, Any]:
    return {
        "accuracy": test.accuracy,
        "accuracy_interval": test.intervals["accuracy"],
        "num_test": test.num_examples,
        "balanced_accuracy": test.balanced_accuracy,
        "log_loss": test.log_loss,
        "calibration_error": test.expected_calibration_error,
        "calibration_interval": test.intervals["expected_calibration_error"],
        "per_class": test.to_dict()["per_class"],
    }


def _card_quality(test: SingleLabelEvaluation) -> list[str]:
    low, high = test.intervals["accuracy"]
    lowest, highest = test.intervals["expected_calibration_error"]
    return [
        f"On {test.num_examples} test images that were not used for training or for any choice, "
        f"its accuracy is **{100 * test.accuracy:.1f} %** (95 % interval {100 * low:.1f}–"
        f"{100 * high:.1f}); the mean over classes is {100 * test.balanced_accuracy:.1f} %, the "
        f"log loss {test.log_loss:.3f}.",
        "Calibration: its confidence differs from its accuracy by "
        f"{test.expected_calibration_error:.3f} on average ({lowest:.3f}–{highest:.3f}; expected "
        "calibration error, 15 bins).",
    ]


def _card_table(test: SingleLabelEvaluation) -> Table:
    header = ["class", "recall, % (95 % interval)", "precision, %", "F1, %", "test images"]
    rows = [
        [
            name,
            f"{100 * of.recall:.1f} ({100 * of.recall_interval[0]:.1f}–"
            f"{100 * of.recall_interval[1]:.1f})",
            f"{100 * of.precision:.1f}",
            f"{100 * of.f1:.1f}",
            f"{of.support}",
        ]
        for name, of in test.per_class.items()
    ]
    return Table("By class", header, rows)


def _card_limits(test: SingleLabelEvaluation, class_names: Sequence[str]) -> list[str]:
    sentences = [
        f"It always predicts one of its {len(class_names)} classes, also for images of anything "
        "else.",
        "It was evaluated on images from the same source as its training images; accuracy may be "
        "lower on images taken elsewhere, or later.",
    ]
    few = [name for name in class_names if test.per_class[name].support < FEW_IMAGES]
    if few:
        named = enumerated(few, 10)
        sentences.append(
            f"Fewer than {FEW_IMAGES} test images show {named}: the figures of "
            f"{'this class' if len(few) == 1 else 'these classes'} are imprecise."
        )
    if test.expected_calibration_error > _MUCH_OFF:
        sentences.append(
            "Its probabilities are not calibrated: they differ from its accuracy by "
            f"{100 * test.expected_calibration_error:.0f} percentage points on average."
        )
    return sentences


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
            fix=_where_classes_may_be(Path(where, class_names[0]) if class_names else Path()),
        )
    check_spelling(class_names, where, "class", "classes")


def _where_classes_may_be(only: Path) -> str:
    """What to do about a single class, whose folder may hold those of the classes."""
    inner = sorted(one.name for one in only.iterdir() if one.is_dir()) if only.is_dir() else []
    if only.name and len(inner) > 1:
        return f"if {enumerated(inner, _MOST_NAMED)} are the classes, give the folder {only}"
    return "add images of a second class"


def _check_every_class_is_trained(items: Sequence[Record], where: str) -> None:
    trained = {record.label for record in items if record.split in (None, "train")}
    # In reverse, so that the first image of each class is named.
    elsewhere = {record.label: record for record in items[::-1] if record.label not in trained}
    if elsewhere:
        names = ", ".join(map(repr, sorted(elsewhere)))
        raise DataError(
            f"{'class' if len(elsewhere) == 1 else 'classes'} {names} of {where} "
            f"{'is' if len(elsewhere) == 1 else 'are'} missing from the training split",
            expected=f"one of training's classes, {', '.join(sorted(trained)) or 'none'}",
            received="; ".join(
                f"{label!r} in split {record.split!r} only, as in {record.path}"
                for label, record in sorted(elsewhere.items())
            ),
            fix="correct the labels, or add training images of the classes",
        )
