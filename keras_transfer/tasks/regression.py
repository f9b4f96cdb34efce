"""Regression: every image has K numbers, and some may be missing."""

import math
from collections.abc import Callable, Sequence
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
from keras_transfer.evaluation.results import Headline, Table
from keras_transfer.models.activations import Activation
from keras_transfer.models.head import head_layers
from keras_transfer.specs import ModelSpec, RunSpec, TrainingSpec
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead
from keras_transfer.tasks.ridge import PENALTIES, solve_ridge
from keras_transfer.tasks.task import Monitor, TaskDefaults

if TYPE_CHECKING:
    import tensorflow as tf

NUM_BINS: Final = 5
"""Number of ranges with about equally many images, which are strata."""

SAME: Final = 0.01
"""Two predictions this many standard deviations apart lead to the same decision."""

_MIN_IN_BIN: Final = 3
"""Smaller ranges are not strata: they could not be in every split."""

_LAST: Final = "units"
_COLUMN_FIGURES: Final = ("mean_absolute_error", "root_mean_squared_error", "r2")


@keras.saving.register_keras_serializable("keras_transfer")
class StandardisedHuber(keras.losses.Loss):
    """Huber's loss of errors divided by `deviations` [K], with its bend at 1.

    Averaged over the known values of each image; NaN is a missing value. An image without a known
    value has a loss of 0.
    """

    def __init__(
        self, deviations: Sequence[float], name: str = "standardised_huber", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.deviations = list(deviations)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Losses [B] of values and predictions [B, K] in the user's units."""
        is_known = ops.logical_not(ops.isnan(y_true))
        known = ops.cast(is_known, y_pred.dtype)
        scale = ops.convert_to_tensor(self.deviations, y_pred.dtype)
        errors = ops.abs(ops.where(is_known, y_true, y_pred) - y_pred) / scale
        losses = ops.where(errors <= 1, 0.5 * ops.square(errors), errors - 0.5)
        return ops.sum(losses * known, axis=-1) / ops.maximum(ops.sum(known, axis=-1), 1)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return super().get_config() | {"deviations": self.deviations}


class MeanError(keras.metrics.Metric):
    """The mean over columns of mean errors divided by `scales` [K]; `power` 2 for root mean square.

    Missing values and examples of weight 0 are ignored; all others count once.
    """

    def __init__(self, scales: Sequence[float], name: str, *, power: int) -> None:
        super().__init__(name=name)
        self._scales, self._power = list(scales), power
        self._sums, self._counts = (
            self.add_variable((len(self._scales),), initializer="zeros", name=part)
            for part in ("sums", "counts")
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Values and predictions [B, K], weights [B]."""
        y_true = ops.convert_to_tensor(y_true, self.dtype)
        y_pred = ops.convert_to_tensor(y_pred, self.dtype)
        counts = ops.logical_not(ops.isnan(y_true))
        if sample_weight is not None:
            weights = ops.reshape(ops.convert_to_tensor(sample_weight), (-1, 1))
            counts = ops.logical_and(counts, weights > 0)
        errors = ops.abs(ops.where(counts, y_true, y_pred) - y_pred)
        errors = errors / ops.convert_to_tensor(self._scales, self.dtype)
        self._sums.assign_add(ops.sum(errors**self._power, axis=0))
        self._counts.assign_add(ops.sum(ops.cast(counts, self.dtype), axis=0))

    def result(self) -> Any:
        """0 without a known value."""
        counts = ops.convert_to_tensor(self._counts)
        known = ops.cast(counts > 0, self.dtype)
        means = self._sums / ops.maximum(counts, 1)
        means = ops.sqrt(means) if self._power == 2 else means
        return ops.sum(means * known) / ops.maximum(ops.sum(known), 1)


@dataclass(frozen=True)
class ColumnFigures:
    """Figures of one column over the images where it is known, in its own units.

    A figure is None where it is not defined: without a known value, or R² of equal values.
    """

    mean_absolute_error: float | None
    root_mean_squared_error: float | None
    r2: float | None
    mean_absolute_error_interval: Interval | None
    root_mean_squared_error_interval: Interval | None
    r2_interval: Interval | None
    num_known: int


@dataclass(frozen=True)
class RegressionEvaluation:
    """All figures of one split of images with K numbers.

    `overall` has the same figures as means over columns: errors of one column are in its own
    units, those of several are in standard deviations of the training images, as their names say.
    Intervals are 95 %, from a percentile bootstrap of 1,000 resamples of images.
    """

    num_examples: int
    overall: dict[str, float]
    intervals: dict[str, Interval]
    per_column: dict[str, ColumnFigures]

    @property
    def headline(self) -> Headline:
        """The mean absolute error."""
        name, value = next(iter(self.overall.items()))
        return Headline(name, value, self.intervals[name])

    def describe(self) -> str:
        """The main figures in a sentence."""
        low, high = self.headline.interval
        (first, absolute), (second, squared), *rest = self.overall.items()
        text = f"{first} {absolute:.4g} ({low:.4g} to {high:.4g}), {second} {squared:.4g}"
        text = "".join([text, *(f", R² {r2:.3f}" for _, r2 in rest)]).replace("_", " ")
        return f"{text[0].upper()}{text[1:]}."

    def tables(self) -> list[Table]:
        """Errors and R² of every column."""
        header = ["column", "mean absolute error", "root mean squared error", "R²", "images"]
        rows = [
            [
                name,
                _with_interval(f.mean_absolute_error, f.mean_absolute_error_interval),
                _with_interval(f.root_mean_squared_error, f.root_mean_squared_error_interval),
                _with_interval(f.r2, f.r2_interval),
                f"{f.num_known:,}",
            ]
            for name, f in self.per_column.items()
        ]
        return [Table("Columns", header, rows)]

    def to_dict(self) -> dict[str, Any]:
        """Numbers, lists and dicts that JSON can hold; `interval` is the headline's."""
        return {
            "num_examples": self.num_examples,
            **self.overall,
            "interval": list(self.headline.interval),
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "per_column": {name: asdict(figures) for name, figures in self.per_column.items()},
        }


@dataclass(frozen=True, kw_only=True)
class RegressionOptions:
    """Regression has no options."""


@dataclass(frozen=True)
class Regression(TaskDefaults):
    """Regression of K numbers, the columns `names`.

    Values and outputs are float32 [N, K] in the user's units; a value of NaN is missing. `means`
    and `deviations` [K] are those of the training images, empty before `scaled`, which means 0
    and 1.
    """

    names: tuple[str, ...]
    options: RegressionOptions = field(default_factory=RegressionOptions)
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()

    Options: ClassVar = RegressionOptions
    name: ClassVar[str] = "regression"
    activation: ClassVar[Activation] = "linear"
    strengths: ClassVar[tuple[float, ...]] = PENALTIES

    def __post_init__(self) -> None:
        """Lists, as JSON has them, become tuples."""
        object.__setattr__(self, "means", tuple(self.means))
        object.__setattr__(self, "deviations", tuple(self.deviations))

    @property
    def state(self) -> dict[str, Any]:
        """Means and deviations."""
        return {"means": list(self.means), "deviations": list(self.deviations)}

    @property
    def monitor(self) -> Monitor:
        """The mean absolute error; of several columns in standard deviations.

        Otherwise the column with the largest numbers would dominate.
        """
        several = len(self.names) > 1
        return Monitor("standardised_absolute_error" if several else "mean_absolute_error", "min")

    @property
    def output_scale(self) -> np.ndarray:  # type: ignore[override]
        """The deviations, float32 [K]."""
        return np.array(self.deviations or [1.0] * len(self.names), np.float32)

    @property
    def output_offset(self) -> np.ndarray:  # type: ignore[override]
        """The means, float32 [K]."""
        return np.array(self.means or [0.0] * len(self.names), np.float32)

    @property
    def _error_names(self) -> tuple[str, str]:
        """Names of the absolute and the squared error over all columns."""
        several = len(self.names) > 1
        squared = "standardised_root_mean_squared_error" if several else "root_mean_squared_error"
        return self.monitor.metric, squared

    @property
    def _units(self) -> np.ndarray:
        """Divisors of errors before they are averaged over columns, float32 [K]."""
        return self.output_scale if len(self.names) > 1 else np.ones(1, np.float32)

    @classmethod
    def of(
        cls, records: Sequence[Record], spec: RunSpec, options: RegressionOptions
    ) -> "Regression":
        """The task of the columns of `data.label_column`.

        Raises:
            DataError: a cell is not a number, or a column is empty or constant.
            SpecError: the spec has settings that are defined for classes only.
        """
        _check_spec(spec.training)
        task = cls(tuple(label_columns(spec.data)), options)
        _check_columns(task.targets(records).values, task.names, "the source")
        return task

    def targets(self, records: Sequence[Record]) -> Targets:
        """The numbers of every image; the strata are ranges of each column.

        An image without a known value is in no stratum.

        Raises:
            DataError: a cell is not a finite number.
        """
        rows = [_numbers(record, self.names) for record in records]
        values = np.array(rows, np.float32).reshape(len(rows), len(self.names))
        groups = dict(
            group
            for name, column in zip(self.names, values.T, strict=True)
            for group in _ranges(name, column)
        )
        return Targets(
            values=values,
            names=self.names,
            strata=np.array([*groups.values()], bool).reshape(len(groups), len(rows)).T,
            strata_names=tuple(groups),
            kind="range",
        )

    def encode(self, values: np.ndarray) -> np.ndarray:
        """The values themselves."""
        return values.astype(np.float32, copy=False)

    def head(self, spec: ModelSpec, seed: int) -> list[keras.layers.Layer]:
        """The default head and a layer that maps its standardised outputs to the user's units."""
        layers = head_layers(spec, num_outputs=len(self.names), seed=seed)
        return [*layers, keras.layers.Rescaling(1.0, dtype="float32", name=_LAST)]

    def scaled(self, values: np.ndarray) -> "Regression":
        """The task with means and deviations of training values [N, K].

        Raises:
            DataError: a column is empty or constant.
        """
        _check_columns(values, self.names, "the training split")
        known = values.astype(np.float64)
        means, deviations = (
            tuple(float(np.float32(x)) for x in figures(known, axis=0))
            for figures in (np.nanmean, np.nanstd)
        )
        return replace(self, means=means, deviations=deviations)

    def initialise(self, model: keras.Model) -> None:
        """Set means and deviations of the last layer, before the model is compiled.

        It is a layer of Keras itself without trainable weights, so every format supports it.
        """
        if self.means:
            layer = model.get_layer(_LAST)
            layer.scale, layer.offset = self.deviations, self.means

    def loss(self, training: TrainingSpec) -> keras.losses.Loss:  # noqa: ARG002
        """Huber's loss of standardised errors."""
        return StandardisedHuber(self.output_scale.tolist())

    def metrics(self) -> list[keras.metrics.Metric]:
        """Mean absolute and root mean squared error."""
        scales = self._units.tolist()
        return [
            MeanError(scales, name, power=power)
            for power, name in enumerate(self._error_names, start=1)
        ]

    def example_weights(self, values: np.ndarray, training: TrainingSpec) -> np.ndarray:  # noqa: ARG002
        """0 for images without a known value, else equal, with a mean of 1."""
        counts = (~np.isnan(values)).any(axis=1)
        weights: np.ndarray = (counts / max(counts.mean(), 1 / len(counts))).astype(np.float32)
        return weights

    def solve_head(
        self,
        features: HeadFeatures,
        values: np.ndarray,
        training: TrainingSpec,  # noqa: ARG002
        *,
        strengths: tuple[float, ...] = (),
    ) -> LinearHead:
        """A ridge regression for each column on the images where it is known.

        It minimises squared errors, not Huber's loss. Its logits are standardised by `means` and
        `deviations`, and mapped to the user's units by the head's last layer. `strengths` are
        penalties, chosen by leave-one-out errors.

        Raises:
            DataError: a column is empty or constant, or features are not finite or too many.
        """
        _check_columns(values, self.names, "the training split")
        standardised = (values - np.array(self.means or 0.0)) / self.output_scale
        return solve_ridge(features, standardised, penalties=strengths)

    def example_scores(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Minus the mean absolute error in standard deviations, over the known columns."""
        return -_row_means(self._errors(values, outputs), values)

    def example_losses(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Huber's losses, for each image averaged over its known columns."""
        errors = self._errors(values, outputs)
        return _row_means(np.where(errors <= 1, errors**2 / 2, errors - 0.5), values)

    def _errors(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Absolute errors in standard deviations, float64 [N, K], 0 where missing."""
        errors = np.abs(outputs.astype(np.float64) - values) / self.output_scale
        return np.where(np.isnan(values), 0, errors)

    def headline(self, values: np.ndarray, outputs: np.ndarray) -> Headline:
        """The monitored error with its bootstrap interval."""
        found, low, high = self._figures(values, outputs, seed=0)[:, -1, 0].tolist()
        return Headline(self.monitor.metric, found, (low, high))

    def evaluate(
        self, values: np.ndarray, outputs: np.ndarray, *, seed: int = 0
    ) -> RegressionEvaluation:
        """See `RegressionEvaluation`; `seed` is the bootstrap's, but the headline's is always 0."""
        figures = self._figures(values, outputs, seed=seed)
        headline = self.headline(values, outputs)
        overall, intervals = {}, {}
        names = (*self._error_names, "r2")
        for name, (value, low, high) in zip(names, figures[:, -1].T.tolist(), strict=True):
            if not math.isnan(value):
                overall[name], intervals[name] = value, (low, high)
        intervals[headline.name] = headline.interval
        return RegressionEvaluation(
            num_examples=len(values),
            overall=overall,
            intervals=intervals,
            per_column={
                name: _column_figures(column, int(num_known))
                for name, column, num_known in zip(
                    self.names,
                    figures[:, :-1].transpose(1, 0, 2),
                    (~np.isnan(values)).sum(axis=0),
                    strict=True,
                )
            },
        )

    def _figures(self, values: np.ndarray, outputs: np.ndarray, *, seed: int) -> np.ndarray:
        """Absolute error, squared error and R² with interval ends, [3, K + 1, 3].

        The first axis is value, low end and high end; the last of the second is over all columns.

        Raises:
            DataError: no value is known.
        """
        if np.isnan(values).all():
            raise DataError(
                "errors of images without values are not defined",
                expected="at least one known value",
                received=f"{len(values)} images without any",
                fix="fill the cells of the split",
            )
        figures = _resampled_figures(values, outputs, self._units)
        found = figures(np.ones((1, len(values))))
        ends = bootstrap(figures, len(values), seed=seed)
        return np.concatenate([found, ends]).reshape(3, -1, 3)

    def columns(self, *, labelled: bool = False) -> list[str]:
        """The columns themselves; the true values before them."""
        return [*(f"true_{name}" for name in self.names if labelled), *self.names]

    def row(self, outputs: np.ndarray, value: np.ndarray | None = None) -> list[Any]:
        """The cells of `columns`."""
        true = [] if value is None else ["" if np.isnan(cell) else cell for cell in value]
        return [*true, *outputs.astype(np.float32)]

    def decision(self, outputs: "tf.Tensor") -> "tf.Tensor":
        """The values as text, such as 'height=1.5, width=2'."""
        import tensorflow as tf

        names = tf.constant([f"{name}=" for name in self.names])
        texts = names + tf.strings.as_string(outputs, precision=6, shortest=True)
        return tf.strings.reduce_join(texts, axis=-1, separator=", ")

    def agrees(self, outputs: np.ndarray, expected: np.ndarray, *, margin: float) -> np.ndarray:
        """Whether they differ by at most `margin` or 0.01 standard deviations."""
        differences = np.abs(outputs - expected) / self.output_scale
        result: np.ndarray = (differences <= max(margin, SAME)).all(axis=1)
        return result


def _row_means(figures: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means [N] of figures [N, K], 0 where missing, over the known columns of each row."""
    means: np.ndarray = figures.sum(axis=1) / np.maximum((~np.isnan(values)).sum(axis=1), 1)
    return means


def _resampled_figures(
    values: np.ndarray, outputs: np.ndarray, units: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """From counts of examples [R, N] to the figures of all columns and over them, [R, (K + 1) 3].

    Figures are absolute error, squared error and R²; NaN where they are not defined.
    """
    known = (~np.isnan(values)).astype(np.float64)
    errors = np.where(known > 0, outputs.astype(np.float64) - values, 0)
    present = np.where(known > 0, values, 0).astype(np.float64)
    # Sums of squares lose fewer digits around the mean.
    centred = (present - present.sum(axis=0) / np.maximum(known.sum(axis=0), 1)) * known

    def figures(counts: np.ndarray) -> np.ndarray:
        num_known, squares = counts @ known, counts @ errors**2
        some = np.where(num_known > 0, num_known, np.nan)
        spread = counts @ centred**2 - (counts @ centred) ** 2 / some
        absolute, squared = counts @ np.abs(errors) / some, np.sqrt(squares / some)
        # Variances of this size are rounding errors of equal values.
        is_spread = spread > 1e-12 * (centred**2).sum(axis=0)
        r2 = 1 - squares / np.where(is_spread, spread, np.nan)
        columns = np.stack([absolute, squared, r2], axis=2)
        scaled = np.stack([absolute / units, squared / units, r2], axis=2)
        defined = ~np.isnan(scaled)
        sums, numbers = np.where(defined, scaled, 0).sum(axis=1), defined.sum(axis=1)
        means = sums / np.where(numbers > 0, numbers, np.nan)
        return np.concatenate([columns, means[:, None]], axis=1).reshape(len(counts), -1)

    return figures


def _column_figures(column: np.ndarray, num_known: int) -> ColumnFigures:
    """The figures of one column of `Regression._figures`, [3, 3]."""
    found: dict[str, Any] = {}
    for name, (value, low, high) in zip(_COLUMN_FIGURES, column.T.tolist(), strict=True):
        found[name] = None if math.isnan(value) else value
        found[f"{name}_interval"] = None if math.isnan(low + high) else (low, high)
    return ColumnFigures(**found, num_known=num_known)


def _with_interval(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" + (f" ({interval[0]:.4g}–{interval[1]:.4g})" if interval else "")


def _ranges(name: str, column: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Ranges of a column by quantiles: their names and which images [N] are in them."""
    known = column[~np.isnan(column)]
    if not len(known):
        return []
    inner = np.unique(np.quantile(known, np.arange(1, NUM_BINS) / NUM_BINS))
    bins = np.where(np.isnan(column), -1, np.searchsorted(inner, column))
    edges = [known.min(), *inner, known.max()]
    members = [bins == number for number in range(len(inner) + 1)]
    return [
        (f"{name} {edges[number]:.4g} to {edges[number + 1]:.4g}", rows)
        for number, rows in enumerate(members)
        if rows.sum() >= _MIN_IN_BIN
    ]


def _numbers(record: Record, names: Sequence[str]) -> list[float]:
    """The cells of an image as numbers, NaN where they are empty."""
    numbers = []
    for name, cell in zip(names, record.target, strict=True):
        try:
            number = float(cell) if cell else np.nan
        except ValueError:
            number = np.inf
        # Values are stored in float32.
        if cell and not abs(number) <= float(np.finfo(np.float32).max):
            raise DataError(
                f"{record.path} has no finite number in column {name!r}",
                expected="a number such as 12.5, or nothing where it is missing",
                received=repr(cell),
                fix="correct the cell or empty it",
            )
        numbers.append(number)
    return numbers


def _check_columns(values: np.ndarray, names: Sequence[str], where: str) -> None:
    for name, column in zip(names, values.T, strict=True):
        known = column[~np.isnan(column)]
        if not len(known) or known.min() == known.max():
            raise DataError(
                f"column {name!r} of {where} is empty or constant",
                expected="at least two different numbers",
                received=f"{known[0]:g} in all {len(known)} images" if len(known) else "no number",
                fix="set data.label_column to another column, or correct its cells",
            )


def _check_spec(training: TrainingSpec) -> None:
    defaults = TrainingSpec()
    for name in ("label_smoothing", "class_weights", "sampling"):
        if getattr(training, name) != getattr(defaults, name):
            raise SpecError(
                f"training.{name} is defined for classes only, not for numbers",
                expected="its default",
                received=f"{getattr(training, name)}",
                fix="remove it",
            )
