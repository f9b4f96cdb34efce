"""The CSV source: one line per image, with path, target and optionally split and group."""

import csv
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_transfer.data.csv_dialect import Dialect, find_dialect
from keras_transfer.data.path_search import PathFinder
from keras_transfer.data.records import Listing, Record, counted
from keras_transfer.data.split_names import describe_synonyms, find_roles
from keras_transfer.errors import DataError
from keras_transfer.specs import DataSpec
from keras_transfer.storage.cells import cell_text

_Row = tuple[int, dict[str, str]]


def read(spec: DataSpec) -> Listing:
    """List the images of a CSV file; paths are relative to the file's folder.

    The audit checks that the images exist; the task reads the target cells. A line that repeats
    another is dropped. Encoding and separator are found by `csv_dialect`.

    Raises:
        DataError: the file, a column or a path is missing, a line has too many cells, a split has
            an unknown name, or two lines about one image disagree.
    """
    file = Path(os.path.expanduser(spec.path)).absolute()
    if not spec.path or not file.is_file():
        raise DataError(
            f"data.path={spec.path!r} is not a CSV file",
            expected=f"a CSV file with the columns {spec.path_column} and {spec.label_column}",
            received="a folder" if spec.path and file.is_dir() else "nothing there",
            fix="set data.path to the CSV file, or data.source=folder for class folders",
        )
    dialect, rows = _read_rows(file, spec)
    roles = _roles(file, rows, spec)
    finder = PathFinder(file.parent)
    first_seen: dict[str, tuple[int, Record]] = {}
    repeated = 0
    for line, row in rows:
        record = _record(row, spec, roles, finder, f"{file}, line {line}")
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
    notes = [*dialect.notes(file.name), *describe_synonyms(roles, spec), *finder.notes()]
    notes += [f"{words} of {file.name} ignored, repeating another"] if repeated else []
    items = sorted((record for _, record in first_seen.values()), key=lambda item: item.path)
    return Listing(items, file.parent, notes)


def label_columns(spec: DataSpec) -> list[str]:
    """Names of the columns that hold the target."""
    return [name.strip() for name in spec.label_column.split(",")]


def _read_rows(file: Path, spec: DataSpec) -> tuple[Dialect, list[_Row]]:
    """The dialect, and the number and stripped cells of every line; columns are checked first."""
    try:
        dialect = find_dialect(file, [spec.path_column, *label_columns(spec)])
        with file.open(encoding=dialect.encoding, newline="") as stream:
            for _ in range(dialect.num_skipped):
                stream.readline()
            reader = csv.DictReader(stream, delimiter=dialect.separator)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            _check_columns(columns, file, spec)
            rows = []
            for row in reader:
                line = reader.line_num + dialect.num_skipped
                _check_width(row, columns, f"{file}, line {line}")
                cells = {name: (row[name] or "").strip() for name in columns}
                if any(cells.values()):
                    rows.append((line, cells))
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read as CSV",
            expected="text in UTF-8 or UTF-16, separated by commas, semicolons or tabs",
            received=str(error),
            fix="save the table again as CSV in UTF-8",
        ) from error
    return dialect, rows


def _check_width(row: dict[Any, Any], columns: Sequence[str], where: str) -> None:
    """Raise DataError for a line with more cells than there are columns."""
    surplus = [cell for cell in row.get(None, ()) if cell.strip()]
    if surplus:
        raise DataError(
            f"{where} has more cells than there are columns",
            expected=f"{len(columns)} cells: {', '.join(columns)}",
            received=", ".join([*(row[name] or "" for name in columns), *surplus]),
            fix='put cells with a separator in them into quotes, such as "a, b"',
        )


def _roles(file: Path, rows: Sequence[_Row], spec: DataSpec) -> dict[str, str]:
    """'train', 'val' or 'test' for each text of the split column but the empty one.

    Raises:
        DataError: texts have no such meaning.
    """
    first: dict[str, int] = {}
    for line, row in rows:
        if split := row.get(spec.split_column, ""):
            first.setdefault(split, line)
    roles = find_roles(first, spec)
    if unknown := [name for name in first if name not in roles]:
        raise DataError(
            f"{file}, line {first[unknown[0]]}: unknown split {unknown[0]!r}",
            expected=f"{spec.train_split}, {spec.val_split}, {spec.test_split}, a usual synonym of "
            "these, or nothing",
            received=", ".join(map(repr, unknown)),
            fix="correct the cells, or set data.train_split, data.val_split or data.test_split",
        )
    return roles


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
        if columns.count(name) > 1:
            raise DataError(
                f"{file} has the column {name!r}, named by data.{field}, more than once",
                expected="one column of each name",
                received=", ".join(columns),
                fix="rename or remove the other one",
            )
    missing = [(field, name) for field, name in needed if name not in columns]
    if missing:
        raise _no_columns(missing, needed, columns, file)


def _no_columns(
    missing: Sequence[tuple[str, str]],
    needed: Sequence[tuple[str, str]],
    columns: Sequence[str],
    file: Path,
) -> DataError:
    """The error that names all missing columns, and columns that may be meant."""
    # Not a column that has another meaning already.
    free = [column for column in columns if column not in dict(needed).values()]
    settings: dict[str, str] = {}
    for field, name in missing:
        meant = (difflib.get_close_matches(name, free, n=1) or [*free, "?"])[0]
        free = [column for column in free if column != meant]
        settings.setdefault(field, f"data.{field}={meant}")
    several = sum(field == "label_column" for field, _ in needed) > 1
    others = "; those of several targets are named in task_options.targets" if several else ""
    named = " and ".join(f"{name!r}, named by data.{field}" for field, name in missing)
    return DataError(
        f"{file} has no column {named}",
        expected=f"a first line of column names with {', '.join(name for _, name in needed)}",
        received=", ".join(columns) or "an empty file",
        fix=f"name the columns that are meant, such as {' '.join(settings.values())}{others}",
    )


def _record(
    row: dict[str, str], spec: DataSpec, roles: dict[str, str], finder: PathFinder, where: str
) -> Record:
    if not row[spec.path_column]:
        raise DataError(
            f"{where}: the cell of column {spec.path_column!r} is empty",
            expected="a path on every line",
            received=", ".join(row.values()),
            fix="fill the cell or remove the line",
        )
    path = finder.path(cell_text(row[spec.path_column]))
    if "\n" in path and not finder.exists(path):
        raise DataError(
            f"{where}: the cell of column {spec.path_column!r} goes over several lines",
            expected="a path on one line",
            received=repr(row[spec.path_column][:200]),
            fix="close the quotes that begin there, or remove them",
        )
    return Record(
        path=path,
        target=tuple(cell_text(row[name]) for name in label_columns(spec)),
        split=roles.get(row.get(spec.split_column, "")),
        group=row.get(spec.group_column) or None,
    )


def _check_agreement(one: Record, other: Record, where: str) -> None:
    if one != other:
        raise DataError(
            f"{where} disagree about {one.path}",
            expected="one target, one split and one group for each image",
            received=f"{one.label}, {one.split}, {one.group} and "
            f"{other.label}, {other.split}, {other.group}",
            fix="keep the line that is right",
        )
