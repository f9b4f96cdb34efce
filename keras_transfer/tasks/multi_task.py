"""Several targets at once: one trunk, and a head for each target, each a task of its own.

The logits of all targets are columns of one dense layer, so features, cached outputs, exact heads
and exports are those of a single task; each target reads its range of columns. A label that is
missing counts neither in the loss nor in any figure of its target.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import keras
import numpy as np

from keras_transfer.data.records import Record
from keras_transfer.data.targets import Targets
from keras_transfer.devices.strategy import scope
from keras_transfer.errors import DataError, SpecError
from keras_transfer.evaluation.intervals import Interval, bootstrap
from keras_transfer.evaluation.recorded import PARTS
from keras_transfer.evaluation.results import Evaluation, Headline, Table
from keras_transfer.fields import option
from keras_transfer.models.activations import Kind
from keras_transfer.models.head import head_layers
from keras_transfer.specs import DataSpec, ModelSpec, RunSpec, TrainingSpec
from keras_transfer.tasks.joint_losses import (
    SUMMED_LOSS,
    LossPart,
    LossWeights,
    MultiTaskLoss,
    SummedLoss,
    TargetMetric,
)
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead
from keras_transfer.tasks.target_plans import (
    Target,
    cells_of,
    check_projection,
    check_training,
    for_kind,
    plans_of,
    slices_of,
    task_of,
)
from keras_transfer.tasks.task import CardText, Draw, Head, Monitor, Task, TaskDefaults

if TYPE_CHECKING:
    import tensorflow as tf

_UNITS: Final = "units"


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
        "uncertainty", "weights of the targets' losses in training; 'uncertainty' learns them"
    )
    project_gradients: bool = option(
        False,
        "fine-tuning projects the gradients of targets that are in conflict on each other (PCGrad)",
    )


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
        plans = plans_of(options.targets)
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
        plans = plans_of(options.targets)
        check_training(spec.training, plans)
        if options.project_gradients:
            check_projection(spec)
        parts, errors = [], []
        for plan in plans:
            try:
                parts.append(Target(plan.name, task_of(plan, plans, records, spec)))
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
        for columns in (task.columns(), task.columns(labelled=True)):
            _check_columns(columns)
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
        return slices_of(self.parts, [len(part.task.names) for part in self.parts])

    def _own(
        self, values: np.ndarray, outputs: np.ndarray | None = None
    ) -> Iterator[tuple[Target, np.ndarray, np.ndarray, np.ndarray]]:
        """Each target, rows where it is known, and its values and outputs of these rows."""
        of_values = slices_of(self.parts, [part.width for part in self.parts])
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
        plans, values, strata, names = plans_of(self.options.targets), [], [], []
        for part, plan in zip(self.parts, plans, strict=True):
            known, own = cells_of(plan, plans, records, only_known=part.has_classes)
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
        plans, found = plans_of(self.options.targets), []
        for part, plan in zip(self.parts, plans, strict=True):
            _, own = cells_of(plan, plans, records, only_known=True)
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
            LossPart(
                part.task.loss(for_kind(training, part.kind)),
                columns,
                1 / part.share,
                part.class_weights if is_balanced else (),
            )
            for part, columns in self._columns()
        ]
        projects = self.options.project_gradients
        if self.options.weighting == "equal":
            return MultiTaskLoss(parts, projects=projects)
        with scope():
            return MultiTaskLoss(parts, LossWeights(len(parts)), projects=projects)

    def metrics(self) -> list[keras.metrics.Metric]:
        """The summed loss without label smoothing, and the metrics of every target."""
        plain = TrainingSpec(label_smoothing=0.0)
        parts = [LossPart(part.task.loss(plain), columns) for part, columns in self._columns()]
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
            part.task.example_weights(own, for_kind(training, part.kind))
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
                features.take(rows), own, for_kind(training, part.kind), strengths=some
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
        reads = slices_of(self.parts, [part.width for part in self.parts])
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
        files: Sequence[str],
    ) -> dict[str, Draw]:
        """Those of every target, with its name before the file's."""
        found: dict[str, Draw] = {}
        for part, rows, own, of_part in self._own(values, outputs):
            if not len(rows):
                continue

            def of_known(place: int, rows: np.ndarray = rows) -> np.ndarray:
                return image(int(rows[place]))

            drawn = part.task.figures(
                own,
                of_part,
                evaluation.targets[part.name],
                image=of_known,
                files=[files[row] for row in rows],
            )
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


def _class_weights(task: Task, values: np.ndarray) -> tuple[float, ...]:
    """Weights of balanced classes [C]; empty where a class has no example."""
    classes, first = np.unique(values, return_index=True)
    if len(classes) < len(task.names):
        return ()
    weights = task.example_weights(values, TrainingSpec(class_weights="balanced"))
    return tuple(weights[first].tolist())


def _check_columns(names: Sequence[str]) -> None:
    twice = [name for name in names if names.count(name) > 1 or name in ("path", "error")]
    if twice:
        raise SpecError(
            f"two columns of the predictions would be called {twice[0]!r}",
            expected="targets whose names lead to different columns",
            received=", ".join(names),
            fix="rename a target in task_options.targets, and give its columns there",
        )
