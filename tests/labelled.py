"""Records with the classes of their source."""

from pathlib import Path

from keras_transfer.data.records import Record, Records
from keras_transfer.specs import DataSpec, RunSpec
from keras_transfer.tasks.registry import read_task
from keras_transfer.tasks.single_label import SingleLabel


def read_records(spec: DataSpec) -> Records:
    """The images of a source with one class each."""
    return read_task(RunSpec(data=spec))[1]


def records_of(items: tuple[Record, ...], root: Path) -> Records:
    """Records of classes sorted by name, without any check."""
    task = SingleLabel(tuple(sorted({item.label for item in items})))
    return Records(items, task.targets(items), root)
