"""Figures of single-label classification, as scikit-learn defines them, with intervals."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from keras_transfer.errors import DataError
from keras_transfer.evaluation.intervals import Interval, bootstrap, sum_by_group, wilson
from keras_transfer.evaluation.results import Headline, Table

NUM_BINS = 15
"""Equal-width bins of confidence in the calibration error."""

_RESAMPLED = ("balanced_accuracy", "log_loss", "expected_calibration_error")


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class against the rest. 0 / 0 counts as 0, as in scikit-learn."""

    precision: float
    """Share of the images predicted as this class that are of it."""
    recall: float
    """Share of the images of this class that are predicted as it."""
    f1: float
    """Harmonic mean of both."""
    support: int
    """Number of images of this class."""
    recall_interval: Interval
    """95 %, Wilson's."""


@dataclass(frozen=True, eq=False)
class SingleLabelEvaluation:
    """All figures of one split of images with one label each."""

    num_examples: int
    """Number of images."""
    accuracy: float
    """Share of images that are predicted rightly, 0-1."""
    balanced_accuracy: float
    """Mean recall of the classes that occur."""
    log_loss: float
    """Mean of minus the logarithm of the true class's probability, in nats."""
    expected_calibration_error: float
    """Mean gap between confidence and accuracy over 15 bins of confidence."""
    intervals: dict[str, Interval]
    """95 %, of the four figures above by name: Wilson's for the accuracy, a percentile bootstrap of
    1,000 resamples for the others."""
    top_k: dict[int, float]
    """By k, share of images whose label is among the k most probable classes; k is 3 and 5, where
    there are more classes."""
    per_class: dict[str, ClassFigures]
    """Figures of every class by its name."""
    confusion: np.ndarray
    """int [C, C], numbers of images: rows by true, columns by predicted class."""

    @property
    def headline(self) -> Headline:
        """The accuracy."""
        return Headline("accuracy", self.accuracy, self.intervals["accuracy"])

    def describe(self) -> str:
        """The main figures in a sentence."""
        low, high = self.intervals["accuracy"]
        return (
            f"Accuracy {self.accuracy:.1%} ({low:.1%} to {high:.1%}), balanced accuracy "
            f"{self.balanced_accuracy:.1%}, log loss {self.log_loss:.3f}, calibration error "
            f"{self.expected_calibration_error:.3f}."
        )

    def tables(self) -> list[Table]:
        """Precision, recall and F1 of every class."""
        rows = [
            [name, *(f"{share:.1%}" for share in (f.precision, f.recall, f.f1)), f"{f.support:,}"]
            for name, f in self.per_class.items()
        ]
        return [Table("Classes", ["class", "precision", "recall", "F1", "images"], rows)]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values; `interval` is that of the accuracy."""
        return {
            "num_examples": self.num_examples,
            "accuracy": self.accuracy,
            "interval": list(self.intervals["accuracy"]),
            "balanced_accuracy": self.balanced_accuracy,
            "log_loss": self.log_loss,
            "expected_calibration_error": self.expected_calibration_error,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "top_k": {str(k): share for k, share in self.top_k.items()},
            "per_class": {
                name: {**asdict(figures), "recall_interval": list(figures.recall_interval)}
                for name, figures in self.per_class.items()
            },
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], *, seed: int = 0
) -> SingleLabelEvaluation:
    """Compare predictions with labels.

    Args:
        labels: class indices [N]; not every class need occur.
        probabilities: [N, C], rows that sum to 1.
        class_names: C names.
        seed: of the bootstrap.

    Raises:
        DataError: there are no examples, lengths differ, a label is out of range, or the
            outputs are not probabilities (NaN means that training diverged).
    """
    # Imported here because scikit-learn loads all of SciPy and pandas, which no prediction needs.
    from sklearn import metrics

    labels, probabilities = _check(labels, probabilities, len(class_names))
    predictions = probabilities.argmax(axis=1)
    classes = np.arange(len(class_names))
    per_class = _per_class(labels, predictions, class_names)
    ends = bootstrap(_resampled_figures(labels, probabilities), len(labels), seed=seed)
    intervals = {"accuracy": wilson(int(np.sum(predictions == labels)), len(labels))}
    for name, low, high in zip(_RESAMPLED, *ends.tolist(), strict=True):
        intervals[name] = (low, high)
    return SingleLabelEvaluation(
        num_examples=len(labels),
        accuracy=float(metrics.accuracy_score(labels, predictions)),
        balanced_accuracy=float(np.mean([c.recall for c in per_class.values() if c.support])),
        log_loss=float(metrics.log_loss(labels, probabilities, labels=classes)),
        expected_calibration_error=expected_calibration_error(labels, probabilities),
        intervals=intervals,
        top_k={
            k: float(metrics.top_k_accuracy_score(labels, probabilities, k=k, labels=classes))
            for k in (3, 5)
            if k < len(classes)
        },
        per_class=per_class,
        confusion=metrics.confusion_matrix(labels, predictions, labels=classes),
    )


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over 15 bins of the top class's probability.

    Source: C. Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    bins, gaps = _calibration(labels, probabilities)
    return float(np.abs(np.bincount(bins, gaps)).sum() / len(labels))


def _per_class(
    labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]
) -> dict[str, ClassFigures]:
    from sklearn import metrics

    columns = metrics.precision_recall_fscore_support(
        labels, predictions, labels=np.arange(len(class_names)), zero_division=0
    )
    hits = np.bincount(labels[predictions == labels], minlength=len(class_names))
    return {
        name: ClassFigures(
            float(precision), float(recall), float(f1), int(support), wilson(int(hit), int(support))
        )
        for name, hit, precision, recall, f1, support in zip(
            class_names, hits, *columns, strict=True
        )
    }


def _calibration(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bin of every example, closed to the right, and confidence minus correctness."""
    confidence = probabilities.max(axis=1)
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return bins, confidence - (probabilities.argmax(axis=1) == labels)


def _resampled_figures(
    labels: np.ndarray, probabilities: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """The bootstrap's statistic: from counts of examples [R, N] to the figures of `_RESAMPLED`."""
    num_examples, num_classes = probabilities.shape
    hits = probabilities.argmax(axis=1) == labels
    floor = np.finfo(np.float64).eps
    losses = -np.log(np.maximum(probabilities[np.arange(num_examples), labels], floor))
    bins, gaps = _calibration(labels, probabilities)

    def figures(counts: np.ndarray) -> np.ndarray:
        support = sum_by_group(counts, labels, num_classes)
        recalls = sum_by_group(counts * hits, labels, num_classes) / np.maximum(support, 1)
        balanced = recalls.sum(axis=1) / (support > 0).sum(axis=1)
        errors = np.abs(sum_by_group(counts * gaps, bins, NUM_BINS)).sum(axis=1)
        return np.stack([balanced, counts @ losses / num_examples, errors / num_examples], axis=1)

    return figures


def _check(
    labels: np.ndarray, probabilities: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays, the probabilities as float64 rows that sum to 1 exactly; or DataError."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    if len(labels) == 0 or probabilities.shape != (len(labels), num_classes):
        raise DataError(
            "labels and probabilities do not match",
            expected=f"N ≥ 1 labels and N rows of {num_classes} probabilities",
            received=f"{len(labels)} labels and probabilities of shape {probabilities.shape}",
            fix="pass the predictions of exactly these examples, one column per class",
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            "a label is not a class index",
            expected=f"0 to {num_classes - 1}",
            received=f"{labels.min()} to {labels.max()}",
            fix="number the labels by the class list the model was trained on",
        )
    broken = np.isnan(probabilities).any(axis=1)
    if broken.any():
        raise DataError(
            "the model predicts NaN, so its training has diverged",
            expected="probabilities",
            received=f"NaN in {int(broken.sum())} of {len(labels)} rows",
            fix="lower phases.*.learning_rate, or set devices.precision to 'float32'",
        )
    sums = probabilities.sum(axis=1)
    if probabilities.min() < 0 or np.abs(sums - 1).max() > 1e-3:
        raise DataError(
            "predictions are not probabilities",
            expected="numbers of 0 or more that sum to 1 in every row",
            received=f"values from {probabilities.min():g}, sums {sums.min():g} to {sums.max():g}",
            fix="apply softmax to logits first",
        )
    return labels, probabilities / sums[:, None]
