"""Targets of a task with several: as the options describe them, and with their tasks."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Final

import keras
import numpy as np

from keras_transfer.data.records import Record
from keras_transfer.errors import DataError, SpecError
from keras_transfer.fields import load_row
from keras_transfer.models.activations import Kind
from keras_transfer.specs import RunSpec, TrainingSpec
from keras_transfer.tasks.registry import (
    TASKS,
    describe_task,
    make_options,
    make_task,
    restore_task,
)
from keras_transfer.tasks.task import Task

if TYPE_CHECKING:
    import tensorflow as tf

_PLAIN_METHODS: Final = ("exact", "supervised", "affine", "mixup")
"""Methods that train a plain network on the task's loss."""

_KINDS: Final = {task: row for task, row in TASKS.items() if task != "multi_task"}
"""Tasks of a single target."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_RESERVED: Final = ("path", "error", "values", "output_names", "label", "heat_map", "square_bytes")
_SERVED: Final = (
    *("probabilities", "top_class_indices", "top_probabilities", "class_names", "top_class_names"),
    *("present", "label_names", "thresholds", "output_names"),
)
"""What follows a target's name in names of served outputs."""

_FOR_CLASSES: Final = ("label_smoothing", "class_weights")


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


def slices_of(parts: Sequence[Target], widths: Sequence[int]) -> Iterator[tuple[Target, slice]]:
    ends = pairwise([0, *accumulate(widths)])
    for part, (start, stop) in zip(parts, ends, strict=True):
        yield part, slice(start, stop)


def for_kind(training: TrainingSpec, kind: Kind) -> TrainingSpec:
    """The settings for a target: numbers have none of those that are defined for classes."""
    if kind != "linear":
        return training
    defaults = TrainingSpec()
    return replace(training, **{name: getattr(defaults, name) for name in _FOR_CLASSES})


def check_training(training: TrainingSpec, plans: Sequence[Plan]) -> None:
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


def check_projection(spec: RunSpec) -> None:
    """Check that the gradients of targets can be projected on each other.

    Raises:
        SpecError: Keras computes on another backend, or a phase has a loss of its own.
    """
    if (backend := keras.backend.backend()) != "tensorflow":
        raise SpecError(
            "gradients of several targets are projected on TensorFlow only",
            expected="KERAS_BACKEND=tensorflow",
            received=backend,
            fix="leave task_options.project_gradients out",
        )
    others = {p.name: p.method for p in spec.phases if p.method not in _PLAIN_METHODS}
    if others:
        raise SpecError(
            "gradients of several targets are projected in phases on the targets' losses alone",
            expected=f"phases by {', '.join(_PLAIN_METHODS)}",
            received=", ".join(f"phase {name!r} by {method}" for name, method in others.items()),
            fix="leave task_options.project_gradients out, or change the methods",
        )


def task_of(plan: Plan, plans: Sequence[Plan], records: Sequence[Record], spec: RunSpec) -> Task:
    """The task of one target, from the images where its cells are not empty.

    Raises:
        DataError: there are none, or their cells are not valid for the task.
    """
    has_classes = plan.kind.activation == "softmax"
    _, own = cells_of(plan, plans, records, only_known=has_classes)
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
            training=for_kind(spec.training, plan.kind.activation),
        ),
        own,
    )


def cells_of(
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


def plans_of(targets: Mapping[str, Any]) -> list[Plan]:
    """The targets of `task_options.targets`.

    Raises:
        SpecError: there is none, or one has an unknown task, option or an unusable name.
    """
    if not targets:
        raise SpecError(
            "task multi_task has no targets",
            expected="task_options.targets with the task of each, such as "
            '{species="single_label", age="regression"}',
            received="none",
            fix="name the columns of the CSV file and their tasks there",
        )
    plans = [_plan(name, given) for name, given in targets.items()]
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
            fix=f"name one of {', '.join(_KINDS)}",
        )
    kind = load_row(_KINDS, values["task"], f"{place}: there is no task {values['task']!r}")
    own = {key: value for key, value in values.items() if key not in ("task", "columns")}
    columns = [part.strip() for part in str(values.get("columns", name)).split(",")]
    return Plan(name, kind, make_options(kind, own, f"{place}."), tuple(columns))


def _check_names(names: Sequence[str]) -> None:
    taken = {*_RESERVED, *(f"{name}_{more}" for name in names for more in _SERVED)}
    flawed = [
        name
        for name in names
        if not _NAME.fullmatch(name) or name in taken or name.endswith("_bytes")
    ]
    if flawed:
        raise SpecError(
            f"{', '.join(map(repr, flawed))} cannot name a target",
            expected="letters, digits and _, beginning with a letter; not "
            f"{', '.join(_RESERVED)}, no _bytes at the end, and not that of another target with "
            f"one of {', '.join(_SERVED)} after it",
            received=", ".join(map(repr, flawed)),
            fix='choose another name, and give its column: leaf = {task="regression", '
            'columns="Leaf length"}',
        )
