"""Multi-label classification: every image has any number of K labels, and some may be unknown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import keras
import numpy as np
from keras import ops

from keras_transfer.data.csv_source import label_columns
from keras_transfer.data.records import Record
from keras_transfer.data.targets import Targets
from keras_transfer.errors import DataError, SpecError
from keras_transfer.evaluation.intervals import Interval, bootstrap
from keras_transfer.evaluation.predictions import probability_columns
from keras_transfer.evaluation.results import Headline, Table
from keras_transfer.fields import nearest, option
from keras_transfer.models.activations import Activation
from keras_transfer.models.head import head_layers
from keras_transfer.specs import ModelSpec, RunSpec, TrainingSpec
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead, solve_logistic
from keras_transfer.tasks.task import Monitor, TaskDefaults, check_spelling

if TYPE_CHECKING:
    import tensorflow as tf

NO_LABEL: Final = "no label"
"""Name of the stratum of images that have none of the labels."""

_MIN_WITHOUT_LABEL: Final = 3
"""Fewer images without a label are not a stratum: they could not be in every split."""


@keras.saving.register_keras_serializable("keras_transfer")
class KnownLabelsCrossEntropy(keras.losses.Loss):
    """Sigmoid cross-entropy of logits [B, K], for each image averaged over its known labels.

    Targets are 0, 1 or NaN for unknown; an image without a known label has a loss of 0. With
    `label_smoothing` s a target y becomes y (1 - s) + s / 2. `positive_weights` [K] multiply the
    part of the loss that positives have.
    """

    def __init__(
        self,
        positive_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        name: str = "known_labels_cross_entropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.positive_weights = positive_weights
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Losses [B] of targets and logits [B, K]."""
        is_known = ops.logical_not(ops.isnan(y_true))
        targets = ops.where(is_known, y_true, 0.0)
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        positive = targets * ops.softplus(-y_pred)
        if self.positive_weights is not None:
            positive *= ops.convert_to_tensor(self.positive_weights, y_pred.dtype)
        losses = positive + (1 - targets) * ops.softplus(y_pred)
        known = ops.cast(is_known, y_pred.dtype)
        return ops.sum(losses * known, axis=-1) / ops.maximum(ops.sum(known, axis=-1), 1)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        own = {"positive_weights": self.positive_weights, "label_smoothing": self.label_smoothing}
        return super().get_config() | own


class BinnedAveragePrecision(keras.metrics.Metric):
    """Mean average precision of logits sorted into 4,096 bins between -16 and 16.

    All examples of a bin are treated as equally probable, so the value may differ a little from
    that of `MultiLabelEvaluation`, which sorts exactly. Unknown labels and examples of weight 0 are
    ignored; all others count once. Labels without a positive are left out of the mean.
    """

    _LIMIT: ClassVar[int] = 16
    _NUM_BINS: ClassVar[int] = 4096

    def __init__(self, num_labels: int, name: str = "mean_average_precision") -> None:
        super().__init__(name=name)
        self._num_labels = num_labels
        self._counts = self.add_variable(
            (num_labels * self._NUM_BINS, 2), initializer="zeros", name="counts"
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Targets 0, 1 or NaN and logits [B, K], weights [B]."""
        y_true = ops.convert_to_tensor(y_true, self.dtype)
        y_pred = ops.convert_to_tensor(y_pred, self.dtype)
        counts = ops.logical_not(ops.isnan(y_true))
        if sample_weight is not None:
            weights = ops.reshape(ops.convert_to_tensor(sample_weight), (-1, 1))
            counts = ops.logical_and(counts, weights > 0)
        negatives, positives = (
            ops.cast(ops.logical_and(counts, y_true == label), self.dtype) for label in (0, 1)
        )
        scaled = (y_pred + self._LIMIT) * (self._NUM_BINS / (2 * self._LIMIT))
        bins = ops.cast(ops.clip(scaled, 0, self._NUM_BINS - 1), "int32")
        places = bins + self._NUM_BINS * ops.arange(self._num_labels, dtype="int32")
        pairs = ops.reshape(ops.stack([positives, negatives], axis=-1), (-1, 2))
        size = self._num_labels * self._NUM_BINS
        self._counts.assign_add(ops.segment_sum(pairs, ops.reshape(places, (-1,)), size))

    def result(self) -> Any:
        """0 where no label has a positive."""
        counts = ops.flip(ops.reshape(self._counts, (self._num_labels, self._NUM_BINS, 2)), axis=1)
        positives = counts[..., 0]
        hits = ops.cumsum(positives, axis=1)
        seen = ops.cumsum(ops.sum(counts, axis=-1), axis=1)
        total = hits[:, -1]
        precisions = ops.sum(positives * hits / ops.maximum(seen, 1), axis=1)
        has_positive = ops.cast(total > 0, self.dtype)
        average = precisions / ops.maximum(total, 1)
        return ops.sum(average * has_positive) / ops.maximum(ops.sum(has_positive), 1)


@dataclass(frozen=True)
class LabelFigures:
    """Figures of one label over the images where it is known.

    `average_precision` is None where no image has the label, its interval where a resample may
    have none. Other ratios with a denominator of 0 are 0. The label is predicted for an image if
    its probability is `threshold` or more.
    """

    average_precision: float | None
    average_precision_interval: Interval | None
    precision: float
    recall: float
    f1: float
    threshold: float
    num_positive: int
    num_known: int


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """All figures of one split of images with several labels.

    `mean_average_precision` and `macro_f1` are means over labels, the first over those that occur;
    `micro_f1` is of all decisions together; `log_loss` is in nats for each label. `intervals` are
    95 %, from a percentile bootstrap of 1,000 resamples of images.
    """

    num_examples: int
    mean_average_precision: float
    macro_f1: float
    micro_f1: float
    log_loss: float
    intervals: dict[str, Interval]
    per_label: dict[str, LabelFigures]

    @property
    def headline(self) -> Headline:
        """The mean average precision."""
        name = "mean_average_precision"
        return Headline(name, self.mean_average_precision, self.intervals[name])

    def describe(self) -> str:
        """The main figures in a sentence."""
        low, high = self.intervals["mean_average_precision"]
        return (
            f"Mean average precision {self.mean_average_precision:.1%} ({low:.1%} to {high:.1%}), "
            f"F1 {self.macro_f1:.1%} as the mean over labels and {self.micro_f1:.1%} over all "
            f"decisions, log loss {self.log_loss:.3f}."
        )

    def tables(self) -> list[Table]:
        """Average precision, precision, recall and F1 of every label."""
        header = ["label", "average precision", "precision", "recall", "F1", "threshold", "images"]
        rows = [
            [
                name,
                "-" if f.average_precision is None else f"{f.average_precision:.1%}",
                *(f"{share:.1%}" for share in (f.precision, f.recall, f.f1)),
                f"{f.threshold:.3f}",
                f"{f.num_positive:,} of {f.num_known:,}",
            ]
            for name, f in self.per_label.items()
        ]
        return [Table("Labels", header, rows)]

    def to_dict(self) -> dict[str, Any]:
        """Numbers, lists and dicts that JSON can hold; `interval` is the headline's."""
        return asdict(self) | {"interval": list(self.headline.interval)}


@dataclass(frozen=True, kw_only=True)
class MultiLabelOptions:
    """Options of the format of labels."""

    separator: str = option("|", "between the labels of one cell")
    missing: str = option("?", "cell of an image whose labels, or one of them, are unknown")


@dataclass(frozen=True)
class MultiLabel(TaskDefaults):
    """Multi-label classification with K labels.

    Values are float32 [N, K] of 0, 1 and NaN for unknown, outputs probabilities float32 [N, K].
    `thresholds` [K] are the lowest probabilities at which a label is predicted; empty before
    `fitted` chooses them, which means 0.5. `positive_weights` [K] are n⁻ / n⁺ of the training
    images, empty before `scaled`; the loss uses them with `training.class_weights=balanced`.
    """

    names: tuple[str, ...]
    options: MultiLabelOptions = field(default_factory=MultiLabelOptions)
    thresholds: tuple[float, ...] = ()
    positive_weights: tuple[float, ...] = ()

    Options: ClassVar = MultiLabelOptions
    name: ClassVar[str] = "multi_label"
    activation: ClassVar[Activation] = "sigmoid"
    monitor: ClassVar[Monitor] = Monitor("mean_average_precision", "max", is_share=True)

    def __post_init__(self) -> None:
        """Lists, as JSON has them, become tuples."""
        object.__setattr__(self, "thresholds", tuple(self.thresholds))
        object.__setattr__(self, "positive_weights", tuple(self.positive_weights))

    @property
    def state(self) -> dict[str, Any]:
        """Thresholds and weights."""
        return {
            "thresholds": list(self.thresholds),
            "positive_weights": list(self.positive_weights),
        }

    @classmethod
    def of(
        cls, records: Sequence[Record], spec: RunSpec, options: MultiLabelOptions
    ) -> "MultiLabel":
        """The task of a source: the labels of its cells sorted by name, or its label columns.

        Raises:
            DataError: there is no label, or two differ only by case.
            SpecError: `training.sampling=balanced`, or the separator is empty.
        """
        _check_spec(spec, options)
        columns = label_columns(spec.data)
        if len(columns) > 1:
            return cls(tuple(columns), options)
        cells = {record.target for record in records}
        names = sorted(set().union(*(_labels_of(cell, options) or () for (cell,) in cells)))
        _check_names(names, spec.data.path or spec.data.name)
        return cls(tuple(names), options)

    def targets(self, records: Sequence[Record]) -> Targets:
        """The labels of every image; the strata are the labels, and images without a label.

        Images whose labels are all unknown are in no stratum.

        Raises:
            DataError: an image has an unknown label, or a cell that is not 0, 1 or empty.
        """
        rows = [self._row_of(record) for record in records]
        values = np.array(rows, np.float32).reshape(len(rows), len(self.names))
        strata, names = values == 1, self.names
        without = ~strata.any(axis=1) & _known(values).any(axis=1)
        if without.sum() >= _MIN_WITHOUT_LABEL:
            strata, names = np.column_stack([strata, without]), (*names, NO_LABEL)
        return Targets(
            values=values, names=self.names, strata=strata, strata_names=names, kind="label"
        )

    def _row_of(self, record: Record) -> list[float]:
        if len(record.target) > 1:
            return [
                _number(cell, record, column, self.options)
                for cell, column in zip(record.target, self.names, strict=True)
            ]
        labels = _labels_of(record.target[0], self.options)
        if labels is None:
            return [np.nan] * len(self.names)
        for label in labels:
            if label not in self.names:
                raise DataError(
                    f"{record.path} has a label that is not one of the known ones",
                    expected=f"one of {', '.join(self.names)}",
                    received=repr(label),
                    fix=nearest(label, self.names),
                )
        return [float(name in labels) for name in self.names]

    def encode(self, values: np.ndarray) -> np.ndarray:
        """The values themselves."""
        return values.astype(np.float32, copy=False)

    def head(self, spec: ModelSpec, seed: int) -> list[keras.layers.Layer]:
        """The default head with one output per label."""
        return head_layers(spec, num_outputs=len(self.names), seed=seed)

    def scaled(self, values: np.ndarray) -> "MultiLabel":
        """The task with the weights of positives among training values [N, K].

        A label that all or none of the images have weighs 1.
        """
        positive, negative = (values == 1).sum(axis=0), (values == 0).sum(axis=0)
        both = (positive > 0) & (negative > 0)
        weights = np.where(both, negative / np.maximum(positive, 1), 1.0)
        return replace(self, positive_weights=tuple(weights.tolist()))

    def loss(self, training: TrainingSpec) -> keras.losses.Loss:
        """Cross-entropy of the known labels."""
        return KnownLabelsCrossEntropy(
            self._weights_in_loss(training), label_smoothing=training.label_smoothing or 0.0
        )

    def _weights_in_loss(self, training: TrainingSpec) -> list[float] | None:
        balanced = training.class_weights == "balanced"
        return list(self.positive_weights) or None if balanced else None

    def metrics(self) -> list[keras.metrics.Metric]:
        """The mean average precision over bins."""
        return [BinnedAveragePrecision(len(self.names))]

    def example_weights(self, values: np.ndarray, training: TrainingSpec) -> np.ndarray:
        """0 for images without a known label, else equal, with a mean of 1.

        Raises:
            DataError: weights are balanced and a label has no example.
        """
        if training.class_weights == "balanced":
            Targets(
                values=values,
                names=self.names,
                strata=values == 1,
                strata_names=self.names,
                kind="label",
            ).check_balanced("training.class_weights")
        counts = np.asarray(_known(values).any(axis=1))
        weights: np.ndarray = (counts / max(counts.mean(), 1 / len(counts))).astype(np.float32)
        return weights

    def solve_head(
        self,
        features: HeadFeatures,
        values: np.ndarray,
        training: TrainingSpec,
        *,
        strengths: tuple[float, ...] = (),
    ) -> LinearHead | None:
        """A logistic regression for each label on the images where it is known.

        None for balanced sampling, whose weights of labels depend on each other.

        The loss of an image is the sum over its known labels, not the mean as in `loss`. Images
        without a known label are left out of the standardisation as well.

        Raises:
            DataError: as `example_weights`, or a feature is not finite.
        """
        if training.sampling == "balanced":
            return None
        rows = np.flatnonzero(_known(values).any(axis=1))
        values = values[rows]
        weights = self.example_weights(values, training)[:, None]
        weights = weights * np.where(values == 1, self._weights_in_loss(training) or 1, 1)
        return solve_logistic(features.take(rows), values, weights, strengths=strengths)

    def example_scores(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """1 minus Brier's score, the mean of (probability - target)² over known labels: 0 to 1.

        It needs no thresholds and is highest in expectation for true probabilities. It is 1
        without a known label.
        """
        errors = np.where(_known(values), outputs - np.nan_to_num(values), 0)
        return 1 - _row_means(np.square(errors, dtype=np.float64), values)

    def example_losses(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Log losses in nats, for each image averaged over its known labels."""
        return _row_means(_log_losses(values, outputs), values)

    def headline(self, values: np.ndarray, outputs: np.ndarray) -> Headline:
        """Mean average precision, exact, with its bootstrap interval."""
        averages, ends = _average_precision(values, outputs)
        return Headline(
            "mean_average_precision", float(averages[-1]), (float(ends[0, -1]), float(ends[1, -1]))
        )

    def evaluate(
        self, values: np.ndarray, outputs: np.ndarray, *, seed: int = 0
    ) -> MultiLabelEvaluation:
        """See `MultiLabelEvaluation`; `seed` is that of the bootstrap of F1.

        Raises:
            DataError: no image has any of the labels.
        """
        averages, ends = _average_precision(values, outputs)
        decided = self.present(outputs)
        ones = np.ones((1, len(values)))
        macro, micro = _f1_figures(values, decided)(ones)[0].tolist()
        f1_ends = bootstrap(_f1_figures(values, decided), len(values), seed=seed)
        names = ("mean_average_precision", "macro_f1", "micro_f1")
        intervals = np.column_stack([ends[:, -1], f1_ends]).T.tolist()
        losses = _log_losses(values, outputs)
        return MultiLabelEvaluation(
            num_examples=len(values),
            mean_average_precision=float(averages[-1]),
            macro_f1=macro,
            micro_f1=micro,
            log_loss=float(losses.sum() / _known(values).sum()),
            intervals={n: (low, high) for n, (low, high) in zip(names, intervals, strict=True)},
            per_label=_label_figures(self, values, decided, averages[:-1], ends[:, :-1]),
        )

    def fitted(self, values: np.ndarray, outputs: np.ndarray) -> "MultiLabel":
        """The task with the threshold of best F1 for each label; 0.5 where no image has it."""
        return replace(
            self,
            thresholds=tuple(
                best_threshold(column[known], scores[known])
                for column, scores, known in zip(values.T, outputs.T, _known(values).T, strict=True)
            ),
        )

    def present(self, outputs: np.ndarray) -> np.ndarray:
        """The predicted labels of each image, bool [N, K]."""
        result: np.ndarray = outputs.astype(np.float32) >= self._thresholds()
        return result

    def _thresholds(self) -> np.ndarray:
        return np.array(self.thresholds or [0.5] * len(self.names), np.float32)

    def columns(self, *, labelled: bool = False) -> list[str]:
        """The labels, joined by the separator, and all probabilities; true labels before them."""
        true = ["label"] if labelled else []
        return [*true, "prediction", *probability_columns(self.names)]

    def row(self, outputs: np.ndarray, value: np.ndarray | None = None) -> list[Any]:
        """The cells of `columns`, the most probable label first."""
        outputs = outputs.astype(np.float32)
        cells = [self.options.separator.join(self.decided(outputs)), *outputs]
        if value is None:
            return cells
        if np.isnan(value).all():
            return [self.options.missing, *cells]
        true = [name for name, label in zip(self.names, value, strict=True) if label == 1]
        return [self.options.separator.join(true), *cells]

    def decided(self, outputs: np.ndarray) -> tuple[str, ...]:
        """The labels that reach their thresholds, the most probable first."""
        chosen, best = self.present(outputs), np.argsort(-outputs, kind="stable")
        return tuple(self.names[column] for column in best if chosen[column])

    def served(self, outputs: "tf.Tensor") -> "dict[str, tf.Tensor]":
        """The probabilities, and 1 for each label an image has, int32 [B, K]."""
        import tensorflow as tf

        present = tf.cast(outputs >= tf.constant(self._thresholds()), tf.int32)
        return {"probabilities": outputs, "present": present}

    def served_names(self, served: "dict[str, tf.Tensor]") -> "dict[str, tf.Tensor]":
        """The labels [B, K] of each image, the most probable first, padded with empty texts."""
        import tensorflow as tf

        names = tf.constant(list(self.names))
        shape = tf.shape(served["probabilities"])
        return {
            "labels": self._sorted_labels(served["probabilities"], served["present"]),
            "label_names": tf.broadcast_to(names, shape),
            "probabilities": served["probabilities"],
            "thresholds": tf.broadcast_to(tf.constant(self._thresholds()), shape),
        }

    def _sorted_labels(self, probabilities: "tf.Tensor", present: "tf.Tensor") -> "tf.Tensor":
        import tensorflow as tf

        keys = tf.where(present > 0, probabilities, -1.0)
        _, order = tf.math.top_k(keys, k=len(self.names))
        names = tf.gather(tf.constant(list(self.names)), order)
        return tf.where(tf.gather(present, order, batch_dims=1) > 0, names, "")

    def decision(self, outputs: "tf.Tensor") -> "tf.Tensor":
        """The labels of each image joined by the separator, string [B]."""
        import tensorflow as tf

        labels = self._sorted_labels(outputs, self.served(outputs)["present"])
        separator = self.options.separator
        ended = tf.where(labels == "", "", labels + separator)
        joined = tf.strings.reduce_join(ended, axis=-1)
        length = tf.strings.length(joined) - len(separator.encode())
        return tf.strings.substr(joined, tf.zeros_like(length), tf.maximum(length, 0))

    def agrees(self, outputs: np.ndarray, expected: np.ndarray, *, margin: float) -> np.ndarray:
        """Whether both have the same labels; within `margin` of a threshold either is right."""
        same = self.present(outputs) == self.present(expected)
        result: np.ndarray = (same | (abs(expected - self._thresholds()) <= margin)).all(axis=1)
        return result

    def contradictions(self, served: Mapping[str, np.ndarray]) -> list[str]:
        """Whether names, thresholds and labels follow from the probabilities."""
        found = []
        if any(list(row) != list(self.names) for row in served["label_names"]):
            found.append("label_names are not those of the model")
        if not (served["thresholds"] == self._thresholds()).all():
            found.append("thresholds are not those of the model")
        column = {name: number for number, name in enumerate(self.names)}
        for labels, probabilities in zip(served["labels"], served["probabilities"], strict=True):
            chosen = [column.get(label, -1) for label in labels if label]
            if sorted(chosen) != np.flatnonzero(self.present(probabilities)).tolist():
                found.append("labels are not those whose probability reaches the threshold")
            elif (np.diff(probabilities[chosen]) > 0).any():
                found.append("labels are not sorted by probability")
        return found


def best_threshold(targets: np.ndarray, scores: np.ndarray) -> float:
    """The threshold of best F1 of 0 or 1 [N] and probabilities [N]; of equal ones the highest.

    It is halfway between two probabilities, so that rounding changes no decision. 0.5 without a
    positive.
    """
    if not targets.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float32)
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))
    hits = np.cumsum(targets[order])[ends]
    f1 = 2 * hits / (ends + 1 + targets.sum())
    best = int(f1.argmax())
    lowest = ranked[ends[best]]
    below = ranked[ends[best + 1]] if best + 1 < len(ends) else np.float32(0)
    middle = np.float32((lowest + below) / 2)
    # Between neighbouring floats there is no middle.
    return float(middle if middle > below else lowest)


def _known(values: np.ndarray) -> np.ndarray:
    return ~np.isnan(values)


def _row_means(figures: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means [N] of figures [N, K], 0 where unknown, over the known labels of each row."""
    means: np.ndarray = figures.sum(axis=1) / np.maximum(_known(values).sum(axis=1), 1)
    return means


def _log_losses(values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Log losses float64 [N, K], 0 where unknown."""
    of_truth = np.where(values == 1, outputs, 1 - outputs.astype(np.float64))
    # Outputs are float32: what underflows is at most as large as its smallest number.
    losses = -np.log(np.maximum(of_truth, np.finfo(np.float32).tiny))
    return np.where(_known(values), losses, 0)


def _average_precision(values: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision of every label and then their mean, [K + 1], with intervals [2, K + 1].

    NaN where no image has the label.

    Raises:
        DataError: no image has any of the labels.
    """
    if not (values == 1).any():
        raise DataError(
            "the mean average precision of images without labels is not defined",
            expected="at least one image with one of the labels",
            received=f"{len(values)} images with none",
            fix="add images with labels to the split",
        )
    of_labels = [
        _resampled_average_precision(*columns) for columns in zip(values.T, outputs.T, strict=True)
    ]

    def figures(counts: np.ndarray) -> np.ndarray:
        averages = np.stack([of_label(counts) for of_label in of_labels], axis=1)
        defined = _known(averages)
        means = np.nan_to_num(averages).sum(axis=1) / np.maximum(defined.sum(axis=1), 1)
        return np.column_stack([averages, means])

    # Always the same seed, so that every caller gets the same headline.
    return figures(np.ones((1, len(values))))[0], bootstrap(figures, len(values), seed=0)


def _resampled_average_precision(
    targets: np.ndarray, scores: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """From counts of examples [R, N] to the average precision of one label, [R].

    Σ (recall_n - recall_n-1) precision_n over the distinct scores, as in scikit-learn.
    """
    known = np.flatnonzero(_known(targets))
    order = known[np.argsort(-scores[known], kind="stable")]
    ranked, positive = scores[order], targets[order]
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True)[: len(ranked)])

    def average(counts: np.ndarray) -> np.ndarray:
        if not len(order):
            return np.full(len(counts), np.nan)
        drawn = counts[:, order]
        hits = np.cumsum(drawn * positive, axis=1)[:, ends]
        seen = np.cumsum(drawn, axis=1)[:, ends]
        steps, total = np.diff(hits, axis=1, prepend=0), hits[:, -1]
        area = (steps * hits / np.maximum(seen, 1)).sum(axis=1)
        return np.where(total > 0, area / np.maximum(total, 1), np.nan)

    return average


def _f1_figures(values: np.ndarray, decided: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """From counts of examples [R, N] to macro and micro F1, [R, 2]."""
    hits = (decided & (values == 1)).astype(np.float64)
    both = (decided & _known(values)).astype(np.float64) + (values == 1)

    def figures(counts: np.ndarray) -> np.ndarray:
        twice, sums = 2 * counts @ hits, counts @ both
        macro = (twice / np.maximum(sums, 1)).mean(axis=1)
        micro = twice.sum(axis=1) / np.maximum(sums.sum(axis=1), 1)
        return np.stack([macro, micro], axis=1)

    return figures


def _label_figures(
    task: MultiLabel,
    values: np.ndarray,
    decided: np.ndarray,
    averages: np.ndarray,
    ends: np.ndarray,
) -> dict[str, LabelFigures]:
    known, positive = _known(values), values == 1
    hits, chosen = (decided & positive).sum(axis=0), (decided & known).sum(axis=0)
    support = positive.sum(axis=0)
    return {
        name: LabelFigures(
            average_precision=None if np.isnan(averages[k]) else float(averages[k]),
            average_precision_interval=None
            if np.isnan(ends[:, k]).any()
            else (float(ends[0, k]), float(ends[1, k])),
            precision=float(hits[k] / max(chosen[k], 1)),
            recall=float(hits[k] / max(support[k], 1)),
            f1=float(2 * hits[k] / max(chosen[k] + support[k], 1)),
            threshold=float(task._thresholds()[k]),
            num_positive=int(support[k]),
            num_known=int(known[:, k].sum()),
        )
        for k, name in enumerate(task.names)
    }


def _labels_of(cell: str, options: MultiLabelOptions) -> set[str] | None:
    """The labels of a cell, None where they are unknown."""
    if cell.strip() == options.missing:
        return None
    return {part.strip() for part in cell.split(options.separator)} - {""}


def _number(cell: str, record: Record, column: str, options: MultiLabelOptions) -> float:
    numbers = {"0": 0.0, "1": 1.0, "": np.nan, options.missing: np.nan}
    if cell not in numbers:
        raise DataError(
            f"{record.path} has a cell in column {column!r} that is neither 0 nor 1",
            expected="0, 1, or nothing where it is unknown",
            received=repr(cell),
            fix="correct the cell; a column of label names is used on its own",
        )
    return numbers[cell]


def _check_spec(spec: RunSpec, options: MultiLabelOptions) -> None:
    if spec.training.sampling == "balanced":
        raise SpecError(
            "training.sampling=balanced is not defined for images with several labels",
            expected="natural",
            received="balanced",
            fix="remove it; training.class_weights=balanced gives rare labels more weight",
        )
    if not options.separator:
        raise SpecError(
            "task_options.separator is empty",
            expected="the text between two labels of a cell",
            received="''",
            fix="set task_options.separator=| or leave it out",
        )


def _check_names(names: Sequence[str], where: str) -> None:
    if not names:
        raise DataError(
            f"{where} has no label",
            expected="at least one image with a label",
            received="empty cells only",
            fix="fill the cells, or set data.label_column to another column",
        )
    check_spelling(names, where, "label", "labels")
