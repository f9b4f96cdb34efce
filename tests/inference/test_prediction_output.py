"""Predictions written to a file, and resumed after a kill."""

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from keras_transfer.data.records import BadFile
from keras_transfer.errors import RunError
from keras_transfer.inference.prediction import Prediction
from keras_transfer.inference.writers import write_predictions
from keras_transfer.tasks.single_label import SingleLabel

NAMES = ("temple", "naïve flower")
TASK = SingleLabel(NAMES)
NUM_FILES = 2500
KINDS = pytest.mark.parametrize("suffix", [".csv", ".parquet"])


class Killed(BaseException):
    """Stands for the end of the process: no code catches it."""


def file_of(number: int) -> Path:
    return Path(f'photos/{number}, "odd"\nname.jpg' if number % 7 == 0 else f"photos/{number}.jpg")


def row_of(file: Path) -> Prediction | BadFile:
    number = int(file.name.split(",")[0].split(".")[0])
    if number % 10 == 3:
        return BadFile(file.as_posix(), "truncated or damaged")
    share = np.float32(number / NUM_FILES)
    probabilities = np.float32([share, 1 - share])
    return Prediction(file.as_posix(), probabilities, TASK)


def predicting(
    *, until: int | None = None
) -> Callable[[Iterator[Path]], Iterable[Prediction | BadFile]]:
    def predict(files: Iterator[Path]) -> Iterator[Prediction | BadFile]:
        for done, file in enumerate(files):
            if done == until:
                raise Killed
            yield row_of(file)

    return predict


def files(start: int = 0) -> Iterator[Path]:
    return (file_of(number) for number in range(start, NUM_FILES))


def read(output: Path) -> list[dict]:
    if output.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(output).to_pylist()
    with output.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def start(output: Path, *, until: int | None, **options) -> None:
    with pytest.raises(Killed):
        write_predictions(
            predicting(until=until), files(), output, task=TASK, target="a", **options
        )


@KINDS
def test_a_resumed_process_writes_the_same_rows(suffix: str, tmp_path: Path):
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"output{suffix}"
    expected = write_predictions(predicting(), files(), whole, task=TASK)
    start(output, until=1500)
    assert not output.exists()
    start(output, until=100, resume=True)
    summary = write_predictions(predicting(), files(), output, task=TASK, target="a", resume=True)
    assert summary.num_kept > 1000
    assert (summary.num_by_label, summary.num_bad) == (expected.num_by_label, 250)
    assert summary.num_predicted == 2250
    assert read(output) == read(whole)
    assert [row["path"] for row in read(output)] == [file.as_posix() for file in files()]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([whole.name, output.name])


@pytest.mark.parametrize("num_bytes", [1, 9, 25, 60, 4000])
def test_a_torn_csv_continues_after_its_last_complete_row(num_bytes: int, tmp_path: Path):
    output = tmp_path / "output.csv"
    start(output, until=300)
    partial = tmp_path / "output.csv.partial"
    os.truncate(partial, partial.stat().st_size - num_bytes)
    write_predictions(predicting(), files(), output, task=TASK, target="a", resume=True)
    whole = tmp_path / "whole.csv"
    write_predictions(predicting(), files(), whole, task=TASK)
    assert output.read_bytes() == whole.read_bytes()


def test_a_csv_torn_inside_its_header_starts_again(tmp_path: Path):
    output = tmp_path / "output.csv"
    start(output, until=10)
    os.truncate(tmp_path / "output.csv.partial", 7)
    write_predictions(predicting(), files(), output, task=TASK, target="a", resume=True)
    assert len(read(output)) == NUM_FILES


def test_a_torn_part_of_a_parquet_file_is_left_out(tmp_path: Path):
    pytest.importorskip("pyarrow")
    output = tmp_path / "output.parquet"
    start(output, until=2100)
    parts = tmp_path / "output.parquet.partial"
    assert len(list(parts.iterdir())) == 2
    (parts / "00000002.partial.parquet").write_bytes(b"PAR1 half of a part")
    write_predictions(predicting(), files(), output, task=TASK, target="a", resume=True)
    assert len(read(output)) == NUM_FILES


def test_parquet_keeps_types_and_says_nothing_of_bad_files(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    output = tmp_path / "output.parquet"
    write_predictions(predicting(), files(), output, task=TASK)
    table = parquet.read_table(output)
    columns = ["path", "prediction", "confidence", "error", *(f"probability_{x}" for x in NAMES)]
    assert table.column_names == columns
    assert [str(field.type) for field in table.schema] == ["string"] * 2 + ["float", "string"] + [
        "float"
    ] * 2
    bad = table.slice(3, 1).to_pylist()[0]
    assert bad["error"] == "truncated or damaged"
    assert [bad[name] for name in columns if name not in ("path", "error")] == [None] * 4


@KINDS
def test_rows_of_an_earlier_process_are_never_dropped_unasked(suffix: str, tmp_path: Path):
    output = tmp_path / f"output{suffix}"
    start(output, until=1500)
    with pytest.raises(RunError, match="was interrupted") as failure:
        write_predictions(predicting(), files(), output, task=TASK, target="a")
    assert "--resume" in failure.value.fix


@KINDS
def test_another_target_other_columns_and_other_files_are_refused(suffix: str, tmp_path: Path):
    output = tmp_path / f"output{suffix}"
    start(output, until=1500)

    def go_on(paths: Iterable[Path] = files(), *, target="a", task=TASK) -> None:
        write_predictions(predicting(), paths, output, task=task, target=target, resume=True)

    with pytest.raises(RunError, match="was started with another target"):
        go_on(target="b")
    with pytest.raises(RunError, match="was started with another classes"):
        go_on(task=SingleLabel((*NAMES, "third")))
    with pytest.raises(RunError, match="its row 1 differs"):
        go_on(files(start=1))
    with pytest.raises(RunError, match="other files") as failure:
        go_on(itertools.islice(files(), 20))
    assert failure.value.received == "no more files"
    (tmp_path / f"{output.name}.partial.json").write_text("{")
    with pytest.raises(RunError, match="another target and other classes") as failure:
        go_on()
    assert "unknown" in failure.value.expected


@KINDS
def test_a_finished_file_is_never_overwritten(suffix: str, tmp_path: Path):
    output = tmp_path / f"output{suffix}"
    output.write_text("old")
    for resume in (False, True):
        with pytest.raises(RunError, match="exists already"):
            write_predictions(predicting(), files(), output, task=TASK, resume=resume)
    assert output.read_text() == "old"


def test_resume_of_nothing_starts(tmp_path: Path):
    output = tmp_path / "output.csv"
    summary = write_predictions(predicting(), files(), output, task=TASK, resume=True)
    assert summary.num_kept == 0
    assert len(read(output)) == NUM_FILES


def test_two_processes_do_not_write_one_output(tmp_path: Path):
    output = tmp_path / "output.csv"
    with (
        FileLock(tmp_path / "output.csv.partial.lock"),
        pytest.raises(RunError, match="another process is writing"),
    ):
        write_predictions(predicting(), files(), output, task=TASK)


def test_other_kinds_of_tables_are_refused(tmp_path: Path):
    with pytest.raises(RunError, match="not a supported table") as failure:
        write_predictions(predicting(), files(), tmp_path / "output.xlsx", task=TASK)
    assert "output.csv" in failure.value.fix


@KINDS
def test_a_full_disk_keeps_the_rows_so_far(suffix: str, tmp_path: Path, full_disk):
    pytest.importorskip("pyarrow")
    output = tmp_path / f"output{suffix}"
    with full_disk(), pytest.raises(RunError, match="disk is full") as failure:
        write_predictions(predicting(), files(), output, task=TASK, target="a")
    assert "--resume" in failure.value.fix
    assert not list(tmp_path.glob("*.lock"))
    write_predictions(predicting(), files(), output, task=TASK, target="a", resume=True)
    assert len(read(output)) == NUM_FILES


def test_names_that_are_no_unicode_survive(tmp_path: Path):
    odd = [Path(os.fsdecode(b"photos/\xff.jpg"))]
    for suffix in (".csv", ".parquet"):
        output = tmp_path / f"output{suffix}"
        write_predictions(
            lambda files: (BadFile(file.as_posix(), "gone") for file in files),
            odd,
            output,
            task=TASK,
        )
    assert read(tmp_path / "output.csv")[0]["path"] == odd[0].as_posix()
    assert read(tmp_path / "output.parquet")[0]["path"] == "photos/\\xff.jpg"


def test_the_identity_of_rows_is_plain_json(tmp_path: Path):
    output = tmp_path / "output.csv"
    start(output, until=100)
    content = json.loads((tmp_path / "output.csv.partial.json").read_text(encoding="utf-8"))
    assert content == {"target": "a", "classes": list(NAMES)}
