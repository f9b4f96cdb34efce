"""The table of tasks: kinds of targets, by the name in `spec.task`."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from keras_transfer.data.labels import without_rare_classes
from keras_transfer.data.records import Record, Records
from keras_transfer.data.sources import read_records
from keras_transfer.errors import SpecError
from keras_transfer.fields import build, load_row
from keras_transfer.specs import DataSpec, RunSpec
from keras_transfer.storage.class_names import check_exportable
from keras_transfer.tasks.task import Task

TASKS: Final = {
    "single_label": "keras_transfer.tasks.single_label:SingleLabel",
    "multi_label": "keras_transfer.tasks.multi_label:MultiLabel",
    "regression": "keras_transfer.tasks.regression:Regression",
    "multi_task": "keras_transfer.tasks.multi_task:MultiTask",
}
"""Import strings, so that reading the table imports no task."""


def source_of(spec: RunSpec) -> DataSpec:
    """The source of a spec with the columns that its task reads.

    Raises:
        SpecError: the task or one of its options is unknown, or it has no such source.
    """
    kind = load_row(TASKS, spec.task, f"there is no task called {spec.task!r}")
    source: DataSpec = kind.source(spec.data, make_options(kind, spec.task_options))
    return source


def make_task(spec: RunSpec, records: Sequence[Record]) -> Task:
    """The task of a spec for the images of a source.

    Raises:
        SpecError: the task or one of its options is unknown.
        DataError: the targets are not valid for the task.
    """
    kind = load_row(TASKS, spec.task, f"there is no task called {spec.task!r}")
    task: Task = kind.of(records, spec, make_options(kind, spec.task_options))
    check_exportable(task.names, spec.data.path or spec.data.name)
    return task


def read_task(spec: RunSpec) -> tuple[Task, Records]:
    """List the images of a spec's source and read their targets.

    Raises:
        SpecError, DataError: see `read_records` and `make_task`.
    """
    listing = read_records(source_of(spec))
    items, notes = without_rare_classes(listing.items, spec.data)
    task = make_task(spec, items)
    notes = [*listing.notes, *notes, *task.notes(items, spec.data)]
    return task, Records(items, task.targets(items), listing.root, notes=tuple(notes))


def read_targets(task: Task, spec: DataSpec) -> Records:
    """List the images of a source, with their targets for an existing task.

    Raises:
        SpecError, DataError: see `read_records` and `Task.targets`.
    """
    listing = read_records(task.source(spec, task.options))
    items = tuple(listing.items)
    notes = (*listing.notes, *task.notes(items, spec))
    return Records(items, task.targets(items), listing.root, notes=notes)


def describe_task(task: Task) -> dict[str, Any]:
    """The task without its names, as plain JSON values."""
    return {"task": task.name, "options": dataclasses.asdict(task.options), "state": task.state}


def restore_task(description: Mapping[str, Any], names: Sequence[str]) -> Task:
    """The task from the values of `describe_task` and the names of its outputs.

    Raises:
        SpecError: the task or one of its options is unknown.
    """
    name = description["task"]
    kind = load_row(TASKS, name, f"there is no task called {name!r}")
    options = make_options(kind, description["options"])
    task: Task = kind(tuple(names), options, **description["state"])
    return task


def register_layers() -> None:
    """Import all tasks, which register their layers with Keras, so that saved models load."""
    for row in TASKS.values():
        importlib.import_module(row.partition(":")[0])


def make_options(kind: Any, values: Mapping[str, Any], prefix: str = "task_options.") -> Any:
    """The options of a kind of task from plain values; `prefix` is their place in a spec.

    Raises:
        SpecError: an option is unknown, or has the wrong type.
    """
    if values and not dataclasses.fields(kind.Options):
        raise SpecError(
            f"task {kind.name!r} has no options",
            expected="task_options left out",
            received=", ".join(values),
            fix="remove them, or choose another task",
        )
    return build(kind.Options, values, prefix, "the spec")
