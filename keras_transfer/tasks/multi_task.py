"""Several targets at once: one trunk, and a head for each target, each a task of its own.

The logits of all targets are columns of one dense layer, so features, cached outputs, exact heads
and exports are those of a single task; each target reads its range of columns. A label that is
missing counts neither in the loss nor in any figure of its target.

Source of the learned weights: A. Kendall et al., "Multi-task learning using uncertainty to weigh
losses for scene geometry and semantics", CVPR 2018.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import keras
import numpy as np
from keras import ops

from keras_transfer.data.records import Record
from keras_transfer.data.targets import Targets
from keras_transfer.errors import DataError, SpecError
from keras_transfer.evaluation.intervals import Interval, bootstrap
from keras_transfer.evaluation.recorded import PARTS
from keras_transfer.evaluation.results import Evaluation, Headline, Table
from keras_transfer.fields import load_row, option
from keras_transfer.models.activations import Kind
from keras_transfer.models.head import head_layers
from keras_transfer.specs import DataSpec, ModelSpec, RunSpec, TrainingSpec
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead
from keras_transfer.tasks.registry import (
    TASKS,
    describe_task,
    make_options,
    make_task,
    restore_task,
)
from keras_transfer.tasks.task import CardText, Draw, Head, Monitor, Task, TaskDefaults

if TYPE_CHECKING:
    import tensorflow as tf

SUMMED_LOSS: Final = "summed_loss"

RATE: Final = 30.0
"""Learned weights move this many times as far in a step as other weights: they are few, start far
from their optimum, and fine-tuning has small steps."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_RESERVED: Final = ("path", "error", "values", "output_names", "label", "heat_map", "square_bytes")
_UNITS: Final = "units"
_FOR_CLASSES: Final = ("label_smoothing", "class_weights")


class LossWeights(keras.layers.Layer):
    """Logarithms of the variances of T losses, which train with the network."""

    def __init__(self, num_losses: int) -> None:
        super().__init__(name="loss_weights", dtype="float32")
        self._scaled = self.add_weight(
            shape=(num_losses,), initializer="zeros", name="log_variances"
        )

    @property
    def logarithms(self) -> Any:
        """s [T], 0 at the start."""
        return RATE * self._scaled


@dataclass(frozen=True, eq=False)
class _Part:
    """The loss of one target: its columns, the factor of its loss, and of each of its classes."""

    loss: keras.losses.Loss
    columns: slice
    factor: float = 1.0
    class_weights: tuple[float, ...] = ()

    def losses(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Losses [B], 0 without a known value, and whether there is one, [B]."""
        targets, logits = y_true[:, self.columns], y_pred[:, self.columns]
        known = ops.any(ops.logical_not(ops.isnan(targets)), axis=-1)
        targets = ops.where(known[:, None], targets, 0.0)
        losses = self.loss.call(targets, logits)
        if self.class_weights:
            weights = ops.convert_to_tensor(self.class_weights, losses.dtype)
            losses = losses * ops.sum(targets * weights, axis=-1)
        known = ops.cast(known, losses.dtype)
        return self.factor * losses * known, known


class MultiTaskLoss(keras.losses.Loss):
    """The sum of the targets' losses, each averaged over the images with a known value.

    With a `layer` of logarithms s it is sum_t exp(-s_t) L_t + s_t, least for s_t = log L_t.
    """

    def __init__(self, parts: Sequence[_Part], layer: LossWeights | None = None) -> None:
        super().__init__(name="multi_task")
        self.parts, self.layer = parts, layer

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Losses [B] of encoded targets, NaN where unknown, and logits [B, K]."""
        losses = [part.losses(y_true, y_pred)[0] for part in self.parts]
        if self.layer is None:
            return sum(losses[1:], losses[0])
        logarithms = self.layer.logarithms
        weighed = ops.stack(losses, axis=-1) * ops.exp(-logarithms) + logarithms
        return ops.sum(weighed, axis=-1)


class SummedLoss(keras.metrics.Metric):
    """The sum over targets of their mean losses over known values, without weights of examples."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        super().__init__(name=SUMMED_LOSS)
        self._parts = parts
        self._sums, self._counts = (
            self.add_variable((len(parts),), initializer="zeros", name=name)
            for name in ("sums", "counts")
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Encoded targets and logits [B, K], weights [B]: examples of weight 0 do not count."""
        y_true = ops.convert_to_tensor(y_true, self.dtype)
        y_pred = ops.convert_to_tensor(y_pred, self.dtype)
        counts: Any = 1.0
        if sample_weight is not None:
            counts = ops.cast(ops.convert_to_tensor(sample_weight) > 0, self.dtype)
        found = [part.losses(y_true, y_pred) for part in self._parts]
        self._sums.assign_add(ops.stack([ops.sum(losses * counts) for losses, _ in found]))
        self._counts.assign_add(ops.stack([ops.sum(known * counts) for _, known in found]))

    def result(self) -> Any:
        """0 for a target without a known value."""
        return ops.sum(self._sums / ops.maximum(ops.convert_to_tensor(self._counts), 1))


class TargetMetric(keras.metrics.Metric):
    """A metric of one target on its columns, over the examples with a known value."""

    def __init__(self, metric: keras.metrics.Metric, target: str, columns: slice) -> None:
        super().__init__(name=f"{target}_{metric.name}")
        self._metric, self._columns = metric, columns

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Encoded targets and logits [B, K], weights [B]."""
        targets = ops.convert_to_tensor(y_true, self.dtype)[:, self._columns]
        known = ops.any(ops.logical_not(ops.isnan(targets)), axis=-1)
        weights = ops.cast(known, self.dtype)
        if sample_weight is not None:
            weights = weights * ops.convert_to_tensor(sample_weight, self.dtype)
        logits = ops.convert_to_tensor(y_pred, self.dtype)[:, self._columns]
        self._metric.update_state(ops.where(known[:, None], targets, 0.0), logits, weights)

    def result(self) -> Any:
        """That of the metric."""
        return self._metric.result()


@dataclass(frozen=True)
class MultiTaskEvaluation:
    """The figures of every target, each over the images where it is known.

    `summed_loss` is the sum of the targets' mean losses. `targets` lacks those that no image has.
    """

    num_examples: int
    summed_loss: float
    interval: Interval
    targets: dict[str, Evaluation]

    @property
    def headline(self) -> Headline:
        """The summed loss."""
        return Headline(SUMMED_LOSS, self.summed_loss, self.interval)

    def describe(self) -> str:
        """The main figures of all targets, in a sentence each."""
        low, high = self.interval
        first = f"Summed loss {self.summed_loss:.4g} ({low:.4g} to {high:.4g})."
        return " ".join([first, *(f"{t}: {own.describe()}" for t, own in self.targets.items())])

    def tables(self) -> list[Table]:
        """Those of every target."""
        return [
            table._replace(title=f"{target}: {table.title}")
            for target, own in self.targets.items()
            for table in own.tables()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Numbers, lists and dicts that JSON can hold."""
        return {
            "num_examples": self.num_examples,
            SUMMED_LOSS: self.summed_loss,
            "intervals": {SUMMED_LOSS: list(self.interval)},
            PARTS: {target: own.to_dict() for target, own in self.targets.items()},
        }


@dataclass(frozen=True, kw_only=True)
class MultiTaskOptions:
    """Options of several targets."""

    targets: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "a table: the task of each target, such as single_label, or a table with the "
            "task, the columns of the CSV file (default: the target's name) and its options"
        },
    )
    weighting: Literal["equal", "uncertainty"] = option(
        "equal", "weights of the targets' losses in training; 'uncertainty' learns them"
    )


@dataclass(frozen=True)
class Plan:
    """A target as the options describe it: its task, that task's options, and its columns."""

    name: str
    kind: Any
    options: Any
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """One of several targets, with its task.

    `share` is that of its known values among training images with any known value;
    `class_weights` [C] are those of balanced classes, empty where it has none.
    """

    name: str
    task: Task
    share: float = 1.0
    class_weights: tuple[float, ...] = ()

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> "Target":
        """From the content of `describe`."""
        task = restore_task(values, values["names"])
        return cls(values["name"], task, values["share"], tuple(values["class_weights"]))

    def describe(self) -> dict[str, Any]:
        """Plain JSON values."""
        own = {"name": self.name, "names": list(self.task.names), "share": self.share}
        return {**own, "class_weights": list(self.class_weights), **describe_task(self.task)}

    @property
    def kind(self) -> Kind:
        """The activation of its columns."""
        assert isinstance(self.task.activation, str)
        return self.task.activation

    @property
    def has_classes(self) -> bool:
        """Whether its values are class indices, one column instead of K."""
        return self.kind == "softmax"

    @property
    def width(self) -> int:
        """The number of columns of its values."""
        return 1 if self.has_classes else len(self.task.names)

    @property
    def output_names(self) -> list[str]:
        """Names of its outputs among those of all targets."""
        if self._is_one_number:
            return [self.name]
        return [f"{self.name}={name}" for name in self.task.names]

    @property
    def _is_one_number(self) -> bool:
        return self.kind == "linear" and len(self.task.names) == 1

    def column(self, name: str, *, labelled: bool) -> str:
        """Name of a CSV column of its task among those of all targets."""
        true = f"true_{self.name}"
        known = {"label": true if labelled else self.name, "prediction": self.name}
        known |= {"labels": self.name, "true_labels": true}
        if self._is_one_number:
            known |= {self.task.names[0]: self.name, f"true_{self.task.names[0]}": true}
        if self.kind == "linear" and name not in known and name.startswith("true_"):
            return f"{true}_{name.removeprefix('true_')}"
        return known.get(name, f"{self.name}_{name}")

    def served_name(self, name: str) -> str:
        """Name of an output of its signatures among those of all targets."""
        is_main = name in ("label", "labels", "values")
        return self.name if is_main else f"{self.name}_{name}"

    def served_outputs(self, served: "dict[str, tf.Tensor]") -> "dict[str, tf.Tensor]":
        """Its outputs by these names; one number is a number, not a list."""
        renamed = {self.served_name(name): tensor for name, tensor in served.items()}
        if self._is_one_number:
            return {self.name: renamed[self.name][:, 0]}
        return renamed


@dataclass(frozen=True)
class MultiTask(TaskDefaults):
    """Several tasks on the same images, one for each target.

    `names` are the targets' outputs in order, such as 'species=cat' and 'age'. Values are float32
    [N, V]: for each target the class index, or its K columns; NaN where unknown. Outputs are
    float32 [N, K].
    """

    names: tuple[str, ...]
    options: MultiTaskOptions = field(default_factory=MultiTaskOptions)
    parts: tuple[Target, ...] = ()

    Options: ClassVar = MultiTaskOptions
    name: ClassVar[str] = "multi_task"
    monitor: ClassVar[Monitor] = Monitor(SUMMED_LOSS, "min")
    output_name: ClassVar[str] = "values"

    def __post_init__(self) -> None:
        """Descriptions, as JSON has them, become targets."""
        parts = tuple(
            part if isinstance(part, Target) else Target.restored(part) for part in self.parts
        )
        object.__setattr__(self, "parts", parts)
        if not parts:
            raise SpecError(
                "the targets of task multi_task are not known without data",
                expected="a CSV file with their columns, or a finished run",
                received="names of outputs only",
                fix="train with the CSV file, and load the run",
            )

    @classmethod
    def source(cls, spec: DataSpec, options: MultiTaskOptions) -> DataSpec:
        """The columns of all targets.

        Raises:
            SpecError: the options name no targets, or the source has no columns.
        """
        plans = _plans(options)
        if spec.source != "csv":
            raise SpecError(
                "task multi_task reads its targets from columns",
                expected="a CSV file, with a column for each target",
                received=f"data.source={spec.source}",
                fix="write a CSV file with the columns path, "
                + ", ".join(name for plan in plans for name in plan.columns),
            )
        if spec.label_column != DataSpec().label_column:
            raise SpecError(
                "the columns of several targets are those in task_options.targets",
                expected="data.label_column left out",
                received=f"data.label_column={spec.label_column}",
                fix="remove it; a target called otherwise than its column has columns=… there",
            )
        names = dict.fromkeys(name for plan in plans for name in plan.columns)
        return replace(spec, label_column=",".join(names))

    @classmethod
    def of(cls, records: Sequence[Record], spec: RunSpec, options: MultiTaskOptions) -> "MultiTask":
        """The task of a source, whose cells are those of the targets' columns.

        Raises:
            SpecError: the options name no targets, or settings are not defined for them.
            DataError: cells of some targets are not valid for their tasks; all are named.
        """
        plans = _plans(options)
        _check_training(spec.training, plans)
        parts, errors = [], []
        for plan in plans:
            try:
                parts.append(Target(plan.name, _task_of(plan, plans, records, spec)))
            except DataError as error:
                errors.append((plan.name, error))
        if errors:
            raise DataError(
                "; ".join(f"target {name!r}: {error.what}" for name, error in errors),
                expected="; ".join(error.expected for _, error in errors),
                received="; ".join(error.received for _, error in errors),
                fix="; ".join(error.fix for _, error in errors),
            )
        names = tuple(name for part in parts for name in part.output_names)
        task = cls(names, options, tuple(parts))
        _check_columns([*task.columns(), *task.columns(labelled=True)[: -len(names)]])
        return task

    @property
    def state(self) -> dict[str, Any]:
        """The targets' tasks."""
        return {"parts": [part.describe() for part in self.parts]}

    @property
    def activation(self) -> tuple[tuple[Kind, int], ...]:  # type: ignore[override]
        """That of each target's columns."""
        return tuple((part.kind, len(part.task.names)) for part in self.parts)

    @property
    def strengths(self) -> tuple[float, ...]:  # type: ignore[override]
        """Those of all targets; each chooses among its own."""
        return tuple(sorted({c for part in self.parts for c in part.task.strengths}))

    @property
    def output_scale(self) -> np.ndarray:  # type: ignore[override]
        """Those of all targets, float32 [K]."""
        return self._spread([part.task.output_scale for part in self.parts])

    @property
    def output_offset(self) -> np.ndarray:  # type: ignore[override]
        """Those of all targets, float32 [K]."""
        return self._spread([part.task.output_offset for part in self.parts])

    def _spread(self, figures: Sequence[np.ndarray | float]) -> np.ndarray:
        return np.concatenate(
            [
                np.broadcast_to(np.float32(own), len(part.task.names))
                for own, part in zip(figures, self.parts, strict=True)
            ]
        )

    @property
    def needs_fitting(self) -> bool:
        """Whether a target's task does."""
        return any(part.task.needs_fitting for part in self.parts)

    @property
    def heads(self) -> Sequence[Head]:  # type: ignore[override]
        """The targets with their columns."""
        return tuple(Head(part.name, own, part.task.soft_losses) for part, own in self._columns())

    def _columns(self) -> Iterator[tuple[Target, slice]]:
        """Each target with its columns of outputs."""
        return _slices(self.parts, [len(part.task.names) for part in self.parts])

    def _own(
        self, values: np.ndarray, outputs: np.ndarray | None = None
    ) -> Iterator[tuple[Target, np.ndarray, np.ndarray, np.ndarray]]:
        """Each target, rows where it is known, and its values and outputs of these rows."""
        of_values = _slices(self.parts, [part.width for part in self.parts])
        for (part, read), (_, columns) in zip(of_values, self._columns(), strict=True):
            own = values[:, read]
            rows = np.flatnonzero(~np.isnan(own).all(axis=1))
            own = own[rows, 0].astype(np.int64) if part.has_classes else own[rows]
            yield part, rows, own, np.zeros(0) if outputs is None else outputs[rows, columns]

    def targets(self, records: Sequence[Record]) -> Targets:
        """The values of all targets, and their strata together.

        Raises:
            DataError: a cell is not valid for its task; the error names the image.
        """
        plans, values, strata, names = _plans(self.options), [], [], []
        for part, plan in zip(self.parts, plans, strict=True):
            known, own = _cells(plan, plans, records, only_known=part.has_classes)
            found = part.task.targets(own)
            of_part = np.full((len(records), part.width), np.nan, np.float32)
            of_part[known] = found.values.reshape(len(own), part.width)
            in_part = np.zeros((len(records), found.strata.shape[1]), bool)
            in_part[known] = found.strata
            values.append(of_part)
            strata.append(in_part)
            # Ranges of numbers begin with their column.
            sign = ": " if part.kind == "linear" else "="
            names += [
                name if name.startswith(f"{part.name} ") else f"{part.name}{sign}{name}"
                for name in found.strata_names
            ]
        return Targets(
            values=np.concatenate(values, axis=1),
            names=self.names,
            strata=np.concatenate(strata, axis=1),
            strata_names=tuple(names),
            kind="group",
        )

    def notes(self, records: Sequence[Record], spec: DataSpec) -> Sequence[str]:
        """Those of every target."""
        plans, found = _plans(self.options), []
        for part, plan in zip(self.parts, plans, strict=True):
            _, own = _cells(plan, plans, records, only_known=True)
            found += [f"{part.name}: {note}" for note in part.task.notes(own, spec)]
        return found

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Those of every target, float32 [B, K]; NaN where unknown."""
        encoded = np.full((len(values), len(self.names)), np.nan, np.float32)
        for (part, rows, own, _), (_, columns) in zip(
            self._own(values), self._columns(), strict=True
        ):
            encoded[rows, columns] = part.task.encode(own)
        return encoded

    def head(self, spec: ModelSpec, seed: int) -> list[keras.layers.Layer]:
        """The default head, and a layer that maps numbers to the user's units."""
        layers = head_layers(spec, num_outputs=len(self.names), seed=seed)
        if self._has_numbers:
            layers.append(keras.layers.Rescaling(1.0, dtype="float32", name=_UNITS))
        return layers

    @property
    def _has_numbers(self) -> bool:
        return any(part.kind == "linear" for part in self.parts)

    def initialise(self, model: keras.Model) -> None:
        """Set the units of numbers in the last layer; classes and labels keep their logits."""
        if self._has_numbers:
            layer = model.get_layer(_UNITS)
            layer.scale, layer.offset = self.output_scale.tolist(), self.output_offset.tolist()

    def scaled(self, values: np.ndarray) -> "MultiTask":
        """The targets with statistics of their known training values.

        Raises:
            DataError: a target has no known value among them, or they are not valid for its task.
        """
        num_any, parts = max((~np.isnan(values).all(axis=1)).sum(), 1), []
        for part, rows, own, _ in self._own(values):
            if not len(rows):
                raise DataError(
                    f"no training image has a value of target {part.name!r}",
                    expected="at least one",
                    received=f"{len(values)} images without any",
                    fix="fill its cells, or remove the target",
                )
            task = part.task.scaled(own)
            weights = _class_weights(task, own) if part.has_classes else ()
            parts.append(Target(part.name, task, len(rows) / num_any, weights))
        return replace(self, parts=tuple(parts))

    def loss(self, training: TrainingSpec) -> MultiTaskLoss:
        """The sum of the targets' losses, or with learned weights."""
        is_balanced = training.class_weights == "balanced"
        parts = [
            _Part(
                part.task.loss(_for_kind(training, part.kind)),
                columns,
                1 / part.share,
                part.class_weights if is_balanced else (),
            )
            for part, columns in self._columns()
        ]
        learns = self.options.weighting == "uncertainty"
        return MultiTaskLoss(parts, LossWeights(len(parts)) if learns else None)

    def metrics(self) -> list[keras.metrics.Metric]:
        """The summed loss without label smoothing, and the metrics of every target."""
        plain = TrainingSpec(label_smoothing=0.0)
        parts = [_Part(part.task.loss(plain), columns) for part, columns in self._columns()]
        return [
            SummedLoss(parts),
            *(
                TargetMetric(metric, part.name, columns)
                for part, columns in self._columns()
                for metric in part.task.metrics()
            ),
        ]

    def example_weights(self, values: np.ndarray, training: TrainingSpec) -> np.ndarray:
        """0 for images without any known value, else equal, with a mean of 1.

        Weights of classes are in `loss`, because an image may have a rare class of one target and
        a frequent one of another.

        Raises:
            DataError: weights are balanced and a class or label has no example.
        """
        for part, _, own, _ in self._own(values):
            part.task.example_weights(own, _for_kind(training, part.kind))
        counts = np.asarray((~np.isnan(values)).any(axis=1))
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
        """Each target's own solution on the images where it is known, side by side.

        Of `strengths` each target takes those among its own candidates, or all if there are none.

        Raises:
            DataError: see the targets' tasks.
        """
        heads = []
        for part, rows, own, _ in self._own(values):
            some = tuple(c for c in strengths if c in part.task.strengths) or strengths
            found = part.task.solve_head(
                features.take(rows), own, _for_kind(training, part.kind), strengths=some
            )
            if found is None:
                return None
            heads.append(found)
        return LinearHead.joined(heads)

    def soft_losses(self, teacher: Any, student: Any, temperature: float) -> Any:
        """The sum of those of the targets."""
        losses = [
            head.soft_losses(teacher[:, head.columns], student[:, head.columns], temperature)
            for head in self.heads
        ]
        return sum(losses[1:], losses[0])

    def example_scores(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Minus the losses."""
        return -self.example_losses(values, outputs)

    def example_losses(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """The sum over targets, each times N over the number of images where it is known.

        So their mean is the sum of the targets' mean losses.
        """
        losses = np.zeros(len(values))
        for part, rows, own, of_part in self._own(values, outputs):
            found = part.task.example_losses(own, of_part)
            losses[rows] += found * (len(values) / max(len(rows), 1))
        return losses

    def headline(self, values: np.ndarray, outputs: np.ndarray) -> Headline:
        """The summed loss with its bootstrap interval."""
        sums, known = np.zeros((2, len(values), len(self.parts)))
        for number, (part, rows, own, of_part) in enumerate(self._own(values, outputs)):
            sums[rows, number] = part.task.example_losses(own, of_part)
            known[rows, number] = 1

        def figures(counts: np.ndarray) -> np.ndarray:
            means = counts @ sums / np.maximum(counts @ known, 1)
            return np.asarray(means.sum(axis=1, keepdims=True))

        # Always the same seed, so that every caller gets the same headline.
        low, high = bootstrap(figures, len(values), seed=0)[:, 0].tolist()
        return Headline(SUMMED_LOSS, float(figures(np.ones((1, len(values))))[0, 0]), (low, high))

    def evaluate(
        self, values: np.ndarray, outputs: np.ndarray, *, seed: int = 0
    ) -> MultiTaskEvaluation:
        """The evaluation of every target by its task; `seed` is the bootstraps'."""
        headline = self.headline(values, outputs)
        return MultiTaskEvaluation(
            num_examples=len(values),
            summed_loss=headline.value,
            interval=headline.interval,
            targets={
                part.name: part.task.evaluate(own, of_part, seed=seed)
                for part, rows, own, of_part in self._own(values, outputs)
                if len(rows)
            },
        )

    def fitted(self, values: np.ndarray, outputs: np.ndarray) -> "MultiTask":
        """The targets with what their tasks choose on known values, such as thresholds."""
        return replace(
            self,
            parts=tuple(
                replace(part, task=part.task.fitted(own, of_part))
                for part, _, own, of_part in self._own(values, outputs)
            ),
        )

    def columns(self, *, labelled: bool = False) -> list[str]:
        """The columns of all targets, named after them; then all numbers."""
        texts, numbers = [], []
        for part in self.parts:
            names = part.task.columns(labelled=labelled)
            own = [part.column(name, labelled=labelled) for name in names]
            texts += own[: -len(part.task.names)]
            numbers += own[-len(part.task.names) :]
        return [*texts, *numbers]

    def row(self, outputs: np.ndarray, value: np.ndarray | None = None) -> list[Any]:
        """The cells of `columns`; an unknown class is empty."""
        texts: list[Any] = []
        reads = _slices(self.parts, [part.width for part in self.parts])
        for (part, columns), (_, read) in zip(self._columns(), reads, strict=True):
            own: Any = None if value is None else value[read]
            if own is not None and part.has_classes:
                own = None if np.isnan(own[0]) else int(own[0])
            cells = part.task.row(outputs[columns], own)[: -len(part.task.names)]
            if value is not None and own is None:
                cells = ["", *cells, ""]  # Label, prediction, confidence, correct.
            texts += cells
        return [*texts, *outputs.astype(np.float32)]

    def decided(self, outputs: np.ndarray) -> tuple[str, ...]:
        """The names that the targets' tasks decide, such as 'species=cat'."""
        return tuple(
            f"{part.name}={name}"
            for part, columns in self._columns()
            for name in part.task.decided(outputs[columns])
        )

    def figures(
        self,
        values: np.ndarray,
        outputs: np.ndarray,
        evaluation: MultiTaskEvaluation,
        *,
        image: Callable[[int], np.ndarray],
    ) -> dict[str, Draw]:
        """Those of every target, with its name before the file's."""
        found: dict[str, Draw] = {}
        for part, rows, own, of_part in self._own(values, outputs):
            if not len(rows):
                continue

            def of_known(place: int, rows: np.ndarray = rows) -> np.ndarray:
                return image(int(rows[place]))

            drawn = part.task.figures(own, of_part, evaluation.targets[part.name], image=of_known)
            found |= {f"{part.name}_{file}": draw for file, draw in drawn.items()}
        return found

    def card(self, evaluation: MultiTaskEvaluation) -> CardText:
        """The evaluation's, and what each target predicts."""
        own = {
            part.name: part.task.card(evaluation.targets[part.name]).predicts
            for part in self.parts
            if part.name in evaluation.targets
        }
        predicts = "; ".join(f"{target} ({what})" for target, what in own.items())
        return replace(super().card(evaluation), predicts=predicts)

    def served(self, outputs: "tf.Tensor") -> "dict[str, tf.Tensor]":
        """All outputs as 'values', and what each target's task serves, named after it."""
        served = {self.output_name: outputs}
        for part, columns in self._columns():
            served |= part.served_outputs(part.task.served(outputs[:, columns]))
        return served

    def served_names(self, served: "dict[str, tf.Tensor]") -> "dict[str, tf.Tensor]":
        """All outputs with their names, and each target's results with names and decisions."""
        outputs = served[self.output_name]
        named = super().served_names({self.output_name: outputs})
        for part, columns in self._columns():
            task = part.task
            named |= part.served_outputs(task.served_names(task.served(outputs[:, columns])))
        return named

    def decision(self, outputs: "tf.Tensor") -> "tf.Tensor":
        """Those of all targets as text, such as 'species=cat, age=3.5'."""
        import tensorflow as tf

        texts = []
        for part, columns in self._columns():
            own = part.task.decision(outputs[:, columns])
            texts.append(own if part.kind == "linear" else tf.strings.join([f"{part.name}=", own]))
        return tf.strings.join(texts, separator=", ")

    def agrees(self, outputs: np.ndarray, expected: np.ndarray, *, margin: float) -> np.ndarray:
        """Whether the decisions on all targets agree."""
        each = [
            part.task.agrees(outputs[:, columns], expected[:, columns], margin=margin)
            for part, columns in self._columns()
        ]
        return np.logical_and.reduce(each)

    def inconsistency(self, outputs: np.ndarray) -> str:
        """That of the first target with one."""
        for part, columns in self._columns():
            if found := part.task.inconsistency(outputs[:, columns]):
                return f"{part.name}: {found}"
        return ""

    def contradictions(self, served: Mapping[str, np.ndarray]) -> list[str]:
        """Whether each target's results follow from all outputs, and from each other."""
        found = super().contradictions(served)
        for part, columns in self._columns():
            values = served[self.output_name][:, columns]
            if part.kind == "linear":
                if not np.array_equal(served[part.name].reshape(values.shape), values):
                    found.append(f"{part.name} differs from values")
                continue
            own = {name.removeprefix(f"{part.name}_"): x for name, x in served.items()}
            own |= {"label": served[part.name], "labels": served[part.name]}
            found += [f"{part.name}: {each}" for each in part.task.contradictions(own)]
            if not np.array_equal(served[f"{part.name}_{part.task.output_name}"], values):
                found.append(f"{part.name}_{part.task.output_name} differ from values")
        return found


def _slices(parts: Sequence[Target], widths: Sequence[int]) -> Iterator[tuple[Target, slice]]:
    ends = pairwise([0, *accumulate(widths)])
    for part, (start, stop) in zip(parts, ends, strict=True):
        yield part, slice(start, stop)


def _class_weights(task: Task, values: np.ndarray) -> tuple[float, ...]:
    """Weights of balanced classes [C]; empty where a class has no example."""
    classes, first = np.unique(values, return_index=True)
    if len(classes) < len(task.names):
        return ()
    weights = task.example_weights(values, TrainingSpec(class_weights="balanced"))
    return tuple(weights[first].tolist())


def _for_kind(training: TrainingSpec, kind: Kind) -> TrainingSpec:
    """The settings for a target: numbers have none of those that are defined for classes."""
    if kind != "linear":
        return training
    defaults = TrainingSpec()
    return replace(training, **{name: getattr(defaults, name) for name in _FOR_CLASSES})


def _check_training(training: TrainingSpec, plans: Sequence[Plan]) -> None:
    defaults = TrainingSpec()
    if training.sampling != defaults.sampling:
        raise SpecError(
            "training.sampling=balanced is not defined for several targets",
            expected=defaults.sampling,
            received=training.sampling,
            fix="remove it; training.class_weights=balanced gives rare classes more weight",
        )
    set_ones = [n for n in _FOR_CLASSES if getattr(training, n) != getattr(defaults, n)]
    if set_ones and all(plan.kind.activation == "linear" for plan in plans):
        raise SpecError(
            f"training.{set_ones[0]} is defined for classes only, not for numbers",
            expected="its default",
            received=f"{getattr(training, set_ones[0])}",
            fix="remove it",
        )


def _check_columns(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 2})
    columns = list(dict.fromkeys(names))
    twice += [name for name in columns if name in ("path", "error")]
    if twice:
        raise SpecError(
            f"two columns of the predictions would be called {twice[0]!r}",
            expected="targets whose names lead to different columns",
            received=", ".join(columns),
            fix="rename a target in task_options.targets, and give its columns there",
        )


def _task_of(plan: Plan, plans: Sequence[Plan], records: Sequence[Record], spec: RunSpec) -> Task:
    """The task of one target, from the images where its cells are not empty.

    Raises:
        DataError: there are none, or their cells are not valid for the task.
    """
    has_classes = plan.kind.activation == "softmax"
    _, own = _cells(plan, plans, records, only_known=has_classes)
    if not any(any(record.target) for record in own):
        raise DataError(
            "all cells are empty",
            expected="a value in some lines",
            received=f"{len(records)} lines without one",
            fix=f"fill the column {', '.join(plan.columns)}, or remove the target",
        )
    return make_task(
        replace(
            spec,
            task=plan.kind.name,
            task_options=vars(plan.options),
            data=replace(spec.data, label_column=",".join(plan.columns)),
            training=_for_kind(spec.training, plan.kind.activation),
        ),
        own,
    )


def _cells(
    plan: Plan, plans: Sequence[Plan], records: Sequence[Record], *, only_known: bool
) -> tuple[np.ndarray, list[Record]]:
    """Rows of images, and these with the cells of one target.

    Args:
        only_known: leave out images whose cells are all empty.
    """
    names = list(dict.fromkeys(name for each in plans for name in each.columns))
    places = [names.index(name) for name in plan.columns]
    if records and len(records[0].target) != len(names):
        raise DataError(
            f"{records[0].path} does not have a cell for each target",
            expected=f"cells of the columns {', '.join(names)}",
            received=", ".join(map(repr, records[0].target)),
            fix="use a CSV file with these columns",
        )
    own = [replace(record, target=tuple(record.target[n] for n in places)) for record in records]
    rows = [n for n, record in enumerate(own) if not only_known or any(record.target)]
    return np.array(rows, np.int64), [own[row] for row in rows]


def _plans(options: MultiTaskOptions) -> list[Plan]:
    """The targets of the options.

    Raises:
        SpecError: there is none, or one has an unknown task, option or an unusable name.
    """
    if not options.targets:
        raise SpecError(
            "task multi_task has no targets",
            expected="task_options.targets with the task of each, such as "
            '{species="single_label", age="regression"}',
            received="none",
            fix="name the columns of the CSV file and their tasks there",
        )
    plans = [_plan(name, given) for name, given in options.targets.items()]
    _check_names([plan.name for plan in plans])
    return plans


def _plan(name: str, given: Any) -> Plan:
    place = f"task_options.targets.{name}"
    values = {"task": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping) or not isinstance(values.get("task"), str):
        raise SpecError(
            f"{place} does not name a task",
            expected='a text such as "regression", or a table such as '
            '{task="multi_label", columns="cat,dog"}',
            received=repr(given),
            fix=f"name one of {', '.join(task for task in TASKS if task != MultiTask.name)}",
        )
    rows = {task: row for task, row in TASKS.items() if task != MultiTask.name}
    kind = load_row(rows, values["task"], f"{place}: there is no task {values['task']!r}")
    own = {key: value for key, value in values.items() if key not in ("task", "columns")}
    columns = [part.strip() for part in str(values.get("columns", name)).split(",")]
    return Plan(name, kind, make_options(kind, own, f"{place}."), tuple(columns))


def _check_names(names: Sequence[str]) -> None:
    flawed = [
        name
        for name in names
        if not _NAME.fullmatch(name) or name in _RESERVED or name.endswith("_bytes")
    ]
    if flawed:
        raise SpecError(
            f"{', '.join(map(repr, flawed))} cannot name a target",
            expected="letters, digits and _, beginning with a letter; not "
            f"{', '.join(_RESERVED)}, and no _bytes at the end",
            received=", ".join(map(repr, flawed)),
            fix='choose another name, and give its column: leaf = {task="regression", '
            'columns="Leaf length"}',
        )
