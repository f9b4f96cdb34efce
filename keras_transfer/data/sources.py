"""Lists images and their targets by the source that `data.source` names.

No image is opened here: the audit does that. What the targets mean is decided by the task.
"""

from keras_transfer.data.records import Listing
from keras_transfer.errors import DataError, SpecError
from keras_transfer.fields import load_row
from keras_transfer.specs import SOURCES, DataSpec


def read_records(spec: DataSpec) -> Listing:
    """List a source's images with their targets, splits and groups, in a fixed order.

    Raises:
        DataError: the source is missing or empty, or cannot be read.
        SpecError: the source is unknown, or two splits are given the same name.
    """
    _check_split_names(spec)
    rows = {name: row.read for name, row in SOURCES.items()}
    read = load_row(rows, spec.source, f"data.source={spec.source!r} is unknown")
    try:
        return read(spec)
    except OSError as error:
        raise DataError(
            f"{spec.path or spec.name} cannot be listed",
            expected="a source whose folders and files can be read",
            received=str(error),
            fix="correct the permissions, or set data.path to another place",
        ) from error


def _check_split_names(spec: DataSpec) -> None:
    names = (spec.train_split, spec.val_split, spec.test_split)
    if len(set(names)) < len(names):
        raise SpecError(
            "data.train_split, data.val_split and data.test_split must differ",
            expected="three different names",
            received=", ".join(names),
            fix="change one of them, such as data.val_split=val; a split that the source does not "
            "have is split off from the training images",
        )
