"""Predictions written as they come; a killed process leaves rows that the next one goes on from.

predictions.csv                 when all rows are there, and never over an earlier file
predictions.csv.partial         the rows so far (for Parquet a folder of parts)
predictions.csv.partial.json    what they answer for: the target and the columns

Rows of predictions on their way to a file, in a form that a killed process can go on from.

`CsvRows` appends to a CSV, whose last line may be torn. `ParquetRows` keeps a folder of parts, each
whole or not there, since a Parquet file cannot be read before its end is written.
"""

import csv
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
from filelock import FileLock, Timeout

from keras_transfer.data.records import BadFile
from keras_transfer.errors import KerasTransferError, RunError
from keras_transfer.evaluation.predictions import probability_columns
from keras_transfer.inference.prediction import Prediction
from keras_transfer.storage.atomic import check_vacant, full, put_in_place, replacing, storage_error

Row = Prediction | BadFile

COLUMNS: Final = ("path", "label", "confidence", "error")
SAFE: Final = "the rows so far are safe, and --resume goes on behind them"

_CSV_CHUNK, _PARQUET_CHUNK = 64, 1024
_PARTS_IN_A_ROW_GROUP: Final = 64


class Rows(Protocol):
    """Rows in their order: those that are safe already, and those to come.

    `chunk` is how many rows `write` should get at a time: what a kill loses at most.
    """

    chunk: int

    def kept(self) -> Iterator[tuple[str, str]]:
        """Path and label ('' for a bad file) of every safe row; read to its end before `write`."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows, safe from a kill when this returns."""

    def finish(self, output: Path) -> None:
        """Put everything in its place and leave nothing else."""


def open_rows(output: Path, partial: Path, class_names: Sequence[str]) -> Rows:
    """Rows for an output named .csv or .parquet.

    Raises:
        RunError: it is named otherwise, or pyarrow is not installed.
    """
    match output.suffix.lower():
        case ".csv":
            return CsvRows(partial, class_names)
        case ".parquet":
            return ParquetRows(partial, class_names)
    raise RunError(
        f"--output {output} names no kind of table that can be written",
        expected="a name that ends in .csv or .parquet",
        received=output.name,
        fix=f"give --output {output.with_suffix('.csv')}",
    )


class CsvRows:
    """Rows of a CSV in UTF-8, bytes of names that are no Unicode as they are."""

    chunk = _CSV_CHUNK

    def __init__(self, partial: Path, class_names: Sequence[str]):
        self._partial, self._num_classes = partial, len(class_names)
        self._header = [*COLUMNS, *probability_columns(class_names)]

    def kept(self) -> Iterator[tuple[str, str]]:
        end = 0
        if self._partial.exists():
            with self._partial.open("rb") as file:
                lines = _Lines(file)
                for number, row in enumerate(csv.reader(lines)):
                    # A torn line lacks its end or, inside quotes, its columns.
                    if not lines.is_whole or len(row) != len(self._header):
                        break
                    end = lines.num_bytes
                    if number > 0:
                        yield row[0], row[1]
            with self._partial.open("r+b") as file:
                file.truncate(end)
        if end == 0:
            self._append([self._header])

    def write(self, rows: Sequence[Row]) -> None:
        self._append([self._cells(row) for row in rows])

    def finish(self, output: Path) -> None:
        put_in_place(self._partial, output)

    def _append(self, rows: Sequence[Sequence[Any]]) -> None:
        with self._partial.open(
            "a", newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    def _cells(self, row: Row) -> list[Any]:
        if isinstance(row, BadFile):
            return [row.path, "", "", row.reason, *[""] * self._num_classes]
        # float32 prints with as few digits as tell it from its neighbours.
        return [row.path, row.label, row.probabilities.max(), "", *row.probabilities]


class _Lines:
    """The lines of a file as text, and how many bytes they were."""

    def __init__(self, file: BinaryIO):
        self._file, self.num_bytes, self.is_whole = file, 0, True

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.num_bytes += len(line)
            self.is_whole = line.endswith(b"\n")
            yield line.decode("utf-8", "surrogateescape")


class ParquetRows:
    """Rows of a Parquet file, collected in parts; names that are no Unicode are escaped."""

    chunk = _PARQUET_CHUNK

    def __init__(self, partial: Path, class_names: Sequence[str]):
        try:
            import pyarrow
        except ImportError as error:
            raise RunError(
                "Parquet cannot be written",
                expected="the library of the extra [parquet]",
                received="no pyarrow",
                fix='pip install -e ".[parquet]", or give an --output that ends in .csv',
            ) from error
        text, number = pyarrow.string(), pyarrow.float32()
        kinds = [text, text, number, text, *[number] * len(class_names)]
        names = [*COLUMNS, *probability_columns(class_names)]
        self._partial = partial
        self._schema = pyarrow.schema(list(zip(names, kinds, strict=True)))

    def kept(self) -> Iterator[tuple[str, str]]:
        import pyarrow.parquet

        self._partial.mkdir(parents=True, exist_ok=True)
        for part in self._parts():
            table = pyarrow.parquet.read_table(part, columns=["path", "label"])
            for path, label in zip(*(c.to_pylist() for c in table.columns), strict=True):
                yield path, label or ""

    def write(self, rows: Sequence[Row]) -> None:
        import pyarrow.parquet

        part = self._partial / f"{len(self._parts()):08d}.parquet"
        with replacing(part, safe=SAFE) as path:
            pyarrow.parquet.write_table(self._table(rows), path)

    def finish(self, output: Path) -> None:
        import pyarrow.parquet

        parts = self._parts()
        with (
            replacing(output, safe=SAFE) as path,
            pyarrow.parquet.ParquetWriter(path, self._schema) as writer,
        ):
            for start in range(0, len(parts), _PARTS_IN_A_ROW_GROUP):
                group = parts[start : start + _PARTS_IN_A_ROW_GROUP]
                tables = [pyarrow.parquet.read_table(part) for part in group]
                writer.write_table(pyarrow.concat_tables(tables).combine_chunks())
        shutil.rmtree(self._partial)

    def _parts(self) -> list[Path]:
        """Whole parts in their order; one that was being written is named otherwise."""
        return sorted(self._partial.glob("[0-9]*[0-9].parquet"))

    def _table(self, rows: Sequence[Row]) -> Any:
        import pyarrow

        good = [row if isinstance(row, Prediction) else None for row in rows]
        columns: list[Any] = [
            [_escaped(row.path) for row in rows],
            [row and row.label for row in good],
            [row and float(row.probabilities.max()) for row in good],
            [row.reason if isinstance(row, BadFile) else None for row in rows],
        ]
        blank = np.full(len(self._schema) - len(COLUMNS), np.nan, np.float32)
        figures = np.stack([blank if row is None else row.probabilities for row in good])
        absent = np.array([row is None for row in good])
        columns += [pyarrow.array(column, mask=absent) for column in figures.T.copy()]
        arrays = [
            pyarrow.array(column, field.type) if isinstance(column, list) else column
            for column, field in zip(columns, self._schema, strict=True)
        ]
        return pyarrow.Table.from_arrays(arrays, schema=self._schema)


def same_path(kept: str, path: str) -> bool:
    """Whether a row that was kept stands for this path."""
    return kept in (path, _escaped(path))


def _escaped(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class PredictionSummary:
    """How many files were answered, by label, and how many could not be read.

    `num_kept` of them were there already, from the process before.
    """

    num_by_label: dict[str, int]
    num_bad: int
    num_kept: int = 0

    @property
    def num_predicted(self) -> int:
        return sum(self.num_by_label.values())


def write_predictions(
    answer: Callable[[Iterator[Path]], Iterable[Row]],
    files: Iterable[Path],
    output: Path,
    *,
    class_names: Sequence[str],
    target: str = "",
    resume: bool = False,
) -> PredictionSummary:
    """Write one row a file, in order: path, label, confidence, error, probabilities.

    A bad file's row has its reason under 'error' and nothing else, so that no input is lost.
    Memory does not grow with the number of files.

    Args:
        answer: gives a row for each of the files that it is handed, such as `predict_files`.
        output: named .csv or .parquet.
        target: what tells the model from any other, such as `prediction_targets.identify`.
        resume: go on behind the rows of an earlier process, if it left any.

    Raises:
        RunError: there is such a file, or rows of an earlier process and `resume` is not set;
            those rows belong to another target, other columns or other files; the disk is full
            or `output` cannot be written.
    """
    partial = output.with_name(f"{output.name}.partial")
    rows = open_rows(output, partial, class_names)
    _check_place(output, partial, resume=resume)
    lock = FileLock(output.with_name(f"{partial.name}.lock"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=0):
            _identify(partial, {"target": target, "classes": list(class_names)})
            summary = _write(rows, answer, iter(files), partial, class_names)
            check_vacant(output)
            rows.finish(output)
            _identity_file(partial).unlink()
            Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout as error:
        raise _is_written_now(output) from error
    except Exception as error:
        if isinstance(error, KerasTransferError) or not (isinstance(error, OSError) or full(error)):
            raise
        raise storage_error(error, output, safe=SAFE) from error
    return summary


def _write(
    rows: Rows,
    answer: Callable[[Iterator[Path]], Iterable[Row]],
    files: Iterator[Path],
    partial: Path,
    class_names: Sequence[str],
) -> PredictionSummary:
    counts: Counter[str] = Counter()
    num_kept = 0
    for path, label in rows.kept():
        _check_same(partial, num_kept, path, next(files, None))
        counts[label] += 1
        num_kept += 1
    answers = iter(answer(files))
    while chunk := list(itertools.islice(answers, rows.chunk)):
        rows.write(chunk)
        counts.update("" if isinstance(row, BadFile) else row.label for row in chunk)
    return PredictionSummary({name: counts[name] for name in class_names}, counts[""], num_kept)


def _check_place(output: Path, partial: Path, *, resume: bool) -> None:
    check_vacant(output)
    if partial.exists() and not resume:
        raise RunError(
            f"{partial} holds the rows of a prediction that did not come to its end",
            expected="--resume to go on behind them, or a new --output",
            received="neither",
            fix=f"add --resume, or remove {partial} to begin anew",
        )


def _identity_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _identify(partial: Path, identity: dict[str, Any]) -> None:
    """Write down what the rows belong to, or check that it is what they belonged to before."""
    file = _identity_file(partial)
    if not partial.exists():
        with replacing(file) as path:
            path.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    changed = [name for name in identity if before.get(name) != identity[name]]
    if changed:
        raise RunError(
            f"{partial} was begun with another {' and other '.join(changed)}",
            expected=_shorten(before, changed),
            received=_shorten(identity, changed),
            fix=f"resume with the target that {file} names by its hash, or remove {partial} to "
            "begin anew",
        )


def _shorten(identity: dict[str, Any], names: Sequence[str]) -> str:
    return "; ".join(f"{name} {str(identity.get(name, 'unknown'))[:60]}" for name in names)


def _check_same(partial: Path, row: int, kept: str, file: Path | None) -> None:
    if file is None or not same_path(kept, file.as_posix()):
        raise RunError(
            f"{partial} was begun with other files: its row {row + 1} differs",
            expected=kept,
            received="no more files" if file is None else file.as_posix(),
            fix=f"give the same paths in the same order, or remove {partial} to begin anew",
        )


def _is_written_now(output: Path) -> RunError:
    return RunError(
        f"another process is writing {output}",
        expected="one process for each output",
        received="two",
        fix="wait for the other one, or give another --output",
    )
