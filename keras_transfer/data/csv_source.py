"""The CSV source: one line per image, with path, target and optionally split and group."""

import csv
import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from keras_transfer.data.records import Listing, Record, counted
from keras_transfer.errors import DataError
from keras_transfer.specs import DataSpec

_Row = tuple[int, dict[str, str]]


def read(spec: DataSpec) -> Listing:
    """List the images of a UTF-8 CSV file; paths are relative to the file's folder.

    The audit checks that the images exist; the task reads the target cells. A line that repeats
    another is dropped.

    Raises:
        DataError: the file, a column or a path is missing, a split has an unknown name, or two
            lines about one image disagree.
    """
    file = Path(spec.path).expanduser().absolute()
    if not spec.path or not file.is_file():
        raise DataError(
            f"data.path={spec.path!r} is not a CSV file",
            expected=f"a CSV file with the columns {spec.path_column} and {spec.label_column}",
            received="a folder" if spec.path and file.is_dir() else "nothing there",
            fix="set data.path to the CSV file, or data.source=folder for class folders",
        )
    roles = {"": None, spec.train_split: "train", spec.val_split: "val", spec.test_split: "test"}
    first_seen: dict[str, tuple[int, Record]] = {}
    repeated = 0
    for line, row in _rows(file, spec):
        record = _record(row, spec, roles, f"{file}, line {line}")
        known_line, known = first_seen.setdefault(record.path, (line, record))
        if known_line != line:
            _check_agreement(known, record, f"{file}, lines {known_line} and {line}")
            repeated += 1
    if not first_seen:
        raise DataError(
            f"{file} lists no image",
            expected="a line of column names, then one line per image",
            received="no line below the column names",
            fix="add the images, one per line",
        )
    words = counted(repeated, "line", "lines")
    notes = [f"{words} of {file.name} ignored, repeating another"] if repeated else []
    items = sorted((record for _, record in first_seen.values()), key=lambda item: item.path)
    return Listing(items, file.parent, notes)


def label_columns(spec: DataSpec) -> list[str]:
    """Names of the columns that hold the target."""
    return [name.strip() for name in spec.label_column.split(",")]


def _rows(file: Path, spec: DataSpec) -> Iterator[_Row]:
    """Line number and cells, stripped, of every line; the columns are checked first."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            _check_columns(columns, file, spec)
            for row in reader:
                yield reader.line_num, {name: (row[name] or "").strip() for name in columns}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read as CSV",
            expected="comma-separated text in UTF-8",
            received=str(error),
            fix="save the table again as CSV in UTF-8",
        ) from error


def _check_columns(columns: list[str], file: Path, spec: DataSpec) -> None:
    default = DataSpec()
    needed = [("path_column", spec.path_column)]
    needed += [("label_column", name) for name in label_columns(spec)]
    # Optional columns must exist where the spec names them.
    if spec.split_column != default.split_column:
        needed.append(("split_column", spec.split_column))
    if spec.group_column != default.group_column:
        needed.append(("group_column", spec.group_column))
    for field, name in needed:
        if name in columns:
            continue
        nearest = difflib.get_close_matches(name, columns, n=1) or [columns[0] if columns else "?"]
        raise DataError(
            f"{file} has no column {name!r}, named by data.{field}",
            expected=f"a first line of column names with {', '.join(name for _, name in needed)}",
            received=", ".join(columns) or "an empty file",
            fix=f"set data.{field} to the right column, such as data.{field}={nearest[0]}",
        )


def _record(
    row: dict[str, str], spec: DataSpec, roles: dict[str, str | None], where: str
) -> Record:
    if not row[spec.path_column]:
        raise DataError(
            f"{where}: the cell of column {spec.path_column!r} is empty",
            expected="a path on every line",
            received=", ".join(row.values()),
            fix="fill the cell or remove the line",
        )
    split = row.get(spec.split_column, "")
    if split not in roles:
        raise DataError(
            f"{where}: unknown split {split!r}",
            expected=f"{spec.train_split}, {spec.val_split}, {spec.test_split} or nothing",
            received=repr(split),
            fix="correct the cell, or set data.train_split, data.val_split or data.test_split",
        )
    return Record(
        path=_record_path(row[spec.path_column], Path(spec.path).expanduser().absolute().parent),
        target=tuple(row[name] for name in label_columns(spec)),
        split=roles[split],
        group=row.get(spec.group_column) or None,
    )


def _record_path(cell: str, root: Path) -> str:
    """The path relative to the CSV's folder where it is below that folder, else absolute."""
    path = Path(os.path.normpath(root / Path(cell).expanduser()))
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _check_agreement(one: Record, other: Record, where: str) -> None:
    if one != other:
        raise DataError(
            f"{where} disagree about {one.path}",
            expected="one target, one split and one group for each image",
            received=f"{one.label}, {one.split}, {one.group} and "
            f"{other.label}, {other.split}, {other.group}",
            fix="keep the line that is right",
        )
