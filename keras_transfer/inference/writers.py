"""Writes predictions to a CSV or Parquet file while they are computed; can be resumed after a kill.

predictions.csv                 once all rows are written; never replaces an earlier file
predictions.csv.partial         the rows so far (for Parquet a folder of parts)
predictions.csv.partial.json    the target and the columns of these rows

`CsvRows` appends to a CSV, whose last line may be incomplete after a kill. `ParquetRows` keeps a
folder of complete parts, because an unfinished Parquet file cannot be read.
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
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

import numpy as np
from filelock import FileLock, Timeout

from keras_transfer.data.records import BadFile
from keras_transfer.errors import KerasTransferError, RunError
from keras_transfer.inference.paths import check_table
from keras_transfer.inference.prediction import Prediction
from keras_transfer.storage.atomic import check_vacant, full, put_in_place, replacing, storage_error
from keras_transfer.storage.cells import cell_text, spreadsheet_cell
from keras_transfer.tasks.task import Task

Row = Prediction | BadFile

SAFE: Final = "the rows so far are safe, and --resume continues after them"

_CSV_CHUNK, _PARQUET_CHUNK = 64, 1024
_PARTS_IN_A_ROW_GROUP: Final = 64


class KeptRow(NamedTuple):
    """A row of an earlier process; `labels` are the predicted names."""

    path: str
    labels: tuple[str, ...]
    is_bad: bool


class Rows(Protocol):
    """The rows of one output file: those of an earlier process, and new ones.

    `chunk` is the number of rows per call of `write`: the most rows that a kill can lose.
    """

    chunk: int

    def kept(self) -> Iterator[KeptRow]:
        """The complete rows of an earlier process; read all of them before `write`."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows; after the return a kill does not lose them."""

    def finish(self, output: Path) -> None:
        """Rename the finished file and remove the temporary ones."""


def open_rows(output: Path, partial: Path, task: Task) -> Rows:
    """Rows for an output named .csv or .parquet.

    Raises:
        RunError: it has another suffix, or pyarrow is not installed.
    """
    check_table(output)
    kind = ParquetRows if output.suffix.lower() == ".parquet" else CsvRows
    return kind(partial, task)


class _Table:
    """Columns and cells: path, the task's columns, and 'error' before its numbers."""

    def __init__(self, task: Task):
        self._task = task
        columns = task.columns()
        # Columns of a single label: path, prediction, confidence, error, probability_…
        self.error = 1 + len(columns) - len(task.names)
        self.header = self._with_error("path", columns, "error")

    def cells(self, row: Row) -> list[Any]:
        """The values of the columns; a bad file has its path and error only, else None."""
        if isinstance(row, BadFile):
            return self._with_error(row.path, [None] * (len(self.header) - 2), row.reason)
        return self._with_error(row.path, row.task.row(row.outputs), None)

    def kept(self, path: str, error: str | None, outputs: Sequence[Any]) -> KeptRow:
        """A row that was read back; `outputs` are its last K cells."""
        if error:
            return KeptRow(path, (), is_bad=True)
        numbers = np.asarray(outputs, np.float32)
        return KeptRow(path, self._task.decided(numbers), is_bad=False)

    def outputs(self, row: Sequence[Any]) -> Sequence[Any]:
        """The last K cells of a row."""
        return row[-len(self._task.names) :]

    def _with_error(self, path: str, values: list[Any], error: str | None) -> list[Any]:
        before = self.error - 1
        return [path, *values[:before], error, *values[before:]]


class CsvRows:
    """Rows of a CSV in UTF-8; bytes of file names that are not Unicode are kept."""

    chunk = _CSV_CHUNK

    def __init__(self, partial: Path, task: Task):
        self._partial, self._table = partial, _Table(task)

    def kept(self) -> Iterator[KeptRow]:
        end, header = 0, self._table.header
        if self._partial.exists():
            with self._partial.open("rb") as file:
                lines = _Lines(file)
                for number, row in enumerate(csv.reader(lines)):
                    # An incomplete line has no end or, inside quotes, too few columns.
                    if not lines.is_whole or len(row) != len(header):
                        break
                    end = lines.num_bytes
                    if number > 0:
                        error = row[self._table.error]
                        outputs = self._table.outputs(row)
                        yield self._table.kept(cell_text(row[0]), error, outputs)
            with self._partial.open("r+b") as file:
                file.truncate(end)
        if end == 0:
            self._append([header])

    def write(self, rows: Sequence[Row]) -> None:
        # float32 is written with the fewest digits that give the same value when read.
        self._append([self._table.cells(row) for row in rows])

    def finish(self, output: Path) -> None:
        put_in_place(self._partial, output)

    def _append(self, rows: Sequence[Sequence[Any]]) -> None:
        with self._partial.open(
            "a", newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(map(spreadsheet_cell, row) for row in rows)


class _Lines:
    """The lines of a file as text, and how many bytes have been read."""

    def __init__(self, file: BinaryIO):
        self._file, self.num_bytes, self.is_whole = file, 0, True

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.num_bytes += len(line)
            self.is_whole = line.endswith(b"\n")
            yield line.decode("utf-8", "surrogateescape")


class ParquetRows:
    """Rows of a Parquet file, collected in parts; file names that are not Unicode are escaped."""

    chunk = _PARQUET_CHUNK

    def __init__(self, partial: Path, task: Task):
        import pyarrow

        self._partial, self._table = partial, _Table(task)
        cells = self._table.cells(Prediction("", np.zeros(len(task.names), np.float32), task))
        self._schema = pyarrow.schema(
            [
                (name, pyarrow.float32() if isinstance(value, np.floating) else pyarrow.string())
                for name, value in zip(self._table.header, cells, strict=True)
            ]
        )

    def kept(self) -> Iterator[KeptRow]:
        self._partial.mkdir(parents=True, exist_ok=True)
        names = ["path", "error", *self._table.outputs(self._table.header)]
        for part in self._parts():
            columns = self._dataset([part]).to_table(columns=names).columns
            for path, error, *outputs in zip(*(c.to_pylist() for c in columns), strict=True):
                yield self._table.kept(path, error, outputs)

    def write(self, rows: Sequence[Row]) -> None:
        import pyarrow.parquet

        paths, *columns = zip(*(self._table.cells(row) for row in rows), strict=True)
        table = pyarrow.table([list(map(_escaped, paths)), *columns], schema=self._schema)
        part = self._partial / f"{len(self._parts()):08d}.parquet"
        with replacing(part, safe=SAFE) as path:
            pyarrow.parquet.write_table(table, path)

    def finish(self, output: Path) -> None:
        import pyarrow.parquet

        with (
            replacing(output, safe=SAFE) as path,
            pyarrow.parquet.ParquetWriter(path, self._schema) as writer,
        ):
            parts = self._parts()
            for start in range(0, len(parts), _PARTS_IN_A_ROW_GROUP):
                group = self._dataset(parts[start : start + _PARTS_IN_A_ROW_GROUP])
                writer.write_table(group.to_table().combine_chunks())
        shutil.rmtree(self._partial)

    def _parts(self) -> list[Path]:
        """Complete parts in their order; an unfinished part has another name."""
        return sorted(self._partial.glob("[0-9]*[0-9].parquet"))

    def _dataset(self, parts: Sequence[Path]) -> Any:
        import pyarrow.dataset

        return pyarrow.dataset.dataset([str(part) for part in parts], schema=self._schema)


def same_path(kept: str, path: str) -> bool:
    """Whether an earlier row has this path."""
    return kept in (path, _escaped(path))


def _escaped(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class PredictionSummary:
    """Number of predicted files, also by label, and of files that could not be read.

    An image counts once for each of its predicted labels. `num_kept` is the number of rows from an
    earlier process.
    """

    num_by_label: dict[str, int]
    num_predicted: int
    num_bad: int
    num_kept: int = 0


def write_predictions(
    predict: Callable[[Iterator[Path]], Iterable[Row]],
    files: Iterable[Path],
    output: Path,
    *,
    task: Task,
    target: str = "",
    resume: bool = False,
) -> PredictionSummary:
    """Write one row per file, in order: path, the columns of the task, and error.

    For a single label: path, prediction, confidence, error, probability_…. The row of a bad file
    has only its path and the reason under 'error'. Memory does not grow with the number of files.

    Args:
        predict: returns a row for each file, such as `predict_files`.
        output: named .csv or .parquet.
        task: the task of the outputs, such as `target.contract.restored_task`.
        target: a text that identifies the model, such as `prediction.identify` returns.
        resume: continue after the rows of an earlier process, if there are any.

    Raises:
        RunError: the file exists already; there are rows of an earlier process and `resume` is not
            set, or they belong to another target, other columns or other files; the disk is full
            or `output` cannot be written.
    """
    partial = output.with_name(f"{output.name}.partial")
    rows = open_rows(output, partial, task)
    _check_place(output, partial, resume=resume)
    lock = FileLock(output.with_name(f"{partial.name}.lock"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=0):
            try:
                _identify(partial, {"target": target, "classes": list(task.names)})
                summary = _write(rows, predict, iter(files), partial, task)
                check_vacant(output)
                rows.finish(output)
                _identity_file(partial).unlink()
            finally:
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
    predict: Callable[[Iterator[Path]], Iterable[Row]],
    files: Iterator[Path],
    partial: Path,
    task: Task,
) -> PredictionSummary:
    counts: Counter[str] = Counter()
    num_kept = num_bad = num_predicted = 0
    for row in rows.kept():
        _check_same(partial, num_kept, row.path, next(files, None))
        counts.update(row.labels)
        num_bad += row.is_bad
        num_predicted += not row.is_bad
        num_kept += 1
    predictions = iter(predict(files))
    while chunk := list(itertools.islice(predictions, rows.chunk)):
        rows.write(chunk)
        good = [row for row in chunk if isinstance(row, Prediction)]
        counts.update(label for row in good for label in row.labels)
        num_bad += len(chunk) - len(good)
        num_predicted += len(good)
    num_by_label = {name: counts[name] for name in task.decidable}
    return PredictionSummary(num_by_label, num_predicted, num_bad, num_kept)


def _check_place(output: Path, partial: Path, *, resume: bool) -> None:
    check_vacant(output)
    if partial.exists() and not resume:
        raise RunError(
            f"{partial} holds the rows of a prediction that was interrupted",
            expected="--resume to continue after them, or a new --output",
            received="neither",
            fix=f"add --resume, or remove {partial} to start again",
        )


def _identity_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _identify(partial: Path, identity: dict[str, Any]) -> None:
    """Write the identity of the rows, or check that earlier rows have the same one."""
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
            f"{partial} was started with another {' and other '.join(changed)}",
            expected=_shorten(before, changed),
            received=_shorten(identity, changed),
            fix=f"resume with the target whose hash is in {file}, or remove {partial} to "
            "start again",
        )


def _shorten(identity: dict[str, Any], names: Sequence[str]) -> str:
    return "; ".join(f"{name} {str(identity.get(name, 'unknown'))[:60]}" for name in names)


def _check_same(partial: Path, row: int, kept: str, file: Path | None) -> None:
    if file is None or not same_path(kept, file.as_posix()):
        raise RunError(
            f"{partial} was started with other files: its row {row + 1} differs",
            expected=kept,
            received="no more files" if file is None else file.as_posix(),
            fix=f"give the same paths in the same order, or remove {partial} to start again",
        )


def _is_written_now(output: Path) -> RunError:
    return RunError(
        f"another process is writing {output}",
        expected="one process for each output",
        received="two",
        fix="wait for the other one, or give another --output",
    )
