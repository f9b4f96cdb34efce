"""Predictions written as they come; a killed process leaves rows that the next one goes on from.

predictions.csv                 when all rows are there, and never over an earlier file
predictions.csv.partial         the rows so far (for Parquet a folder of parts)
predictions.csv.partial.json    what they answer for: the target and the columns
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from keras_transfer.data.records import BadFile
from keras_transfer.delivery.atomic import check_vacant, full, replacing, storage_error
from keras_transfer.delivery.prediction_rows import SAFE, Row, Rows, open_rows, same_path
from keras_transfer.errors import KerasTransferError, RunError


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
