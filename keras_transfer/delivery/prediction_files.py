"""Prediction from the command line's side: from words to files, and from answers to a CSV."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from keras_transfer.data.images import EXTENSIONS
from keras_transfer.data.records import BadFile
from keras_transfer.delivery.atomic import replacing
from keras_transfer.delivery.prediction import Prediction
from keras_transfer.errors import DataError
from keras_transfer.evaluation.predictions import probability_columns


@dataclass(frozen=True)
class PredictionSummary:
    """How many files were answered, by label, and how many could not be read."""

    num_by_label: dict[str, int]
    num_bad: int

    @property
    def num_predicted(self) -> int:
        return sum(self.num_by_label.values())


def expand_paths(arguments: Sequence[str], stdin: TextIO) -> Iterator[Path]:
    """The files that a command line means, one by one: millions fit.

    A file stands for itself. A folder stands for all pictures below it, in the order of their
    names; hidden names and links to folders are left out. '-' stands for a list on `stdin`, one
    path a line. Memory is bounded by the largest single folder's names.

    Raises:
        DataError: at once, if a path does not exist or a folder holds no picture.
    """
    for argument in arguments:
        if argument != "-":
            _check_argument(argument)
    return _expand(arguments, stdin)


def write_predictions(
    rows: Iterable[Prediction | BadFile], output: Path, *, class_names: Sequence[str]
) -> PredictionSummary:
    """Write one CSV row a file, as the answers come: path, label, confidence, error, probabilities.

    A bad file's row has its reason under 'error' and nothing else, so that no input is lost.

    Raises:
        RunError: the disk is full, or `output` cannot be written.
    """
    counts: Counter[str] = Counter()
    num_bad = 0
    with (
        replacing(output) as path,
        path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "confidence", "error", *probability_columns(class_names)])
        for row in rows:
            if isinstance(row, BadFile):
                num_bad += 1
                writer.writerow([row.path, "", "", row.reason, *[""] * len(class_names)])
            else:
                counts[row.label] += 1
                # float32 prints with as few digits as tell it from its neighbours.
                confidence = row.probabilities.max()
                writer.writerow([row.path, row.label, confidence, "", *row.probabilities])
    return PredictionSummary({name: counts[name] for name in class_names}, num_bad)


def _check_argument(argument: str) -> None:
    if not os.path.exists(argument):
        raise DataError(
            f"{argument} does not exist",
            expected="files, folders of pictures, or - for a list of paths on standard input",
            received=f"a path that leads nowhere from {os.getcwd()}",
            fix="correct the path",
        )
    if os.path.isdir(argument) and next(_pictures(argument)) == Path(argument):
        raise DataError(
            f"the folder {argument} holds no picture",
            expected=f"files named {', '.join(sorted(EXTENSIONS))} in it or in its sub-folders",
            received="none",
            fix="give the folder that holds the pictures",
        )


def _expand(arguments: Sequence[str], stdin: TextIO) -> Iterator[Path]:
    for argument in arguments:
        if argument != "-":
            yield from _pictures(argument)
            continue
        for line in stdin:
            if path := line.rstrip("\r\n"):
                yield from _pictures(path)


def _pictures(path: str) -> Iterator[Path]:
    """The pictures below a folder, or the path itself.

    A folder that is empty or cannot be listed is passed on like a file, to end as a bad one:
    an endless list must neither stop for it nor swallow it.
    """
    if not os.path.isdir(path):
        yield Path(path)
        return
    unlisted: list[OSError] = []
    found = False
    for parent, folders, files in os.walk(path, onerror=unlisted.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in EXTENSIONS and not name.startswith("."):
                found = True
                yield Path(parent, name)
    unread = [Path(error.filename) for error in unlisted]
    yield from unread if found or unread else [Path(path)]
