"""The run folder: what may be opened, what is written and what is refused."""

import errno
import json
import os
from pathlib import Path

import pytest

from keras_transfer.errors import DataError, ExportError, RunError
from keras_transfer.storage.class_names import read_label_files, write_label_files
from keras_transfer.storage.run_folder import RunFolder, describe_environment, latest, next_free


def start(path: Path) -> RunFolder:
    run = RunFolder.create(path)
    run.write_json("spec.json", {"name": path.name})
    return run


def test_create_makes_the_folder_and_its_parents(tmp_path: Path):
    run = RunFolder.create(tmp_path / "deep" / "run")
    assert run.path.is_dir()
    assert not run.is_complete
    assert list(run.path.iterdir()) == []


def test_create_refuses_a_folder_that_holds_a_run(tmp_path: Path):
    run = start(tmp_path / "run")
    with pytest.raises(RunError, match="unfinished run") as failure:
        RunFolder.create(run.path)
    assert "--resume" in str(failure.value)
    assert "--output" in str(failure.value)
    run.write_json("metrics.json", {})
    assert run.is_complete
    with pytest.raises(RunError, match="a finished run") as failure:
        RunFolder.create(run.path)
    assert "--resume" not in str(failure.value)


def test_create_refuses_a_folder_of_other_files(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(RunError, match="has files that do not belong") as failure:
        RunFolder.create(tmp_path)
    assert "thesis.txt" in str(failure.value)
    with pytest.raises(RunError, match="is a file"):
        RunFolder.create(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "words"


def test_create_starts_again_where_a_run_was_killed_before_its_spec(tmp_path: Path):
    (tmp_path / "run.log").write_text("tensorflow says")
    (tmp_path / "spec.partial.json").write_text("{")
    run = RunFolder.create(tmp_path)
    assert sorted(path.name for path in run.path.iterdir()) == ["run.log"]


def test_create_resumes_only_a_run_and_removes_what_was_half_written(tmp_path: Path):
    with pytest.raises(RunError, match="leave out --resume"):
        RunFolder.create(tmp_path / "run", resume=True)
    run = start(tmp_path / "run")
    (run.path / "model.partial.keras").write_text("half")
    again = RunFolder.create(run.path, resume=True)
    assert again == run
    assert sorted(path.name for path in run.path.iterdir()) == ["spec.json"]


def test_create_refuses_an_unwritable_place(tmp_path: Path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # permissions do not hold root back
        with pytest.raises(RunError, match="cannot be written") as failure:
            RunFolder.create(locked / "run")
        assert os.strerror(errno.EACCES) in str(failure.value)
        assert "another --output" in str(failure.value)
    finally:
        os.seteuid(user)


def test_open_refuses_what_is_no_run(tmp_path: Path):
    with pytest.raises(RunError, match="no such folder"):
        RunFolder.open(tmp_path / "nothing")
    with pytest.raises(RunError, match="a folder without one"):
        RunFolder.open(tmp_path)
    assert RunFolder.open(start(tmp_path / "run").path).path == tmp_path / "run"


def test_json_comes_back_and_has_null_for_what_json_cannot_say(tmp_path: Path):
    run = start(tmp_path / "run")
    run.write_json("metrics.json", {"loss": float("nan"), "rows": (1, [float("inf"), "né"])})
    assert run.read_json("metrics.json") == {"loss": None, "rows": [1, [None, "né"]]}
    assert "NaN" not in run.metrics_file.read_text()


def test_read_json_names_the_file_that_is_missing_or_broken(tmp_path: Path):
    run = start(tmp_path / "run")
    with pytest.raises(RunError, match=r"splits\.json cannot be read"):
        run.read_json("splits.json")
    (run.path / "splits.json").write_text('{"train": [1, 2')
    with pytest.raises(RunError, match="line 1 column"):
        run.read_json("splits.json")


def test_write_rows_quotes_and_keeps_digits(tmp_path: Path):
    run = start(tmp_path / "run")
    run.write_rows("history.csv", ["path", "loss"], [["a,b.jpg", 0.1 + 0.2], ["c.jpg", 1]])
    expected = 'path,loss\n"a,b.jpg",0.30000000000000004\nc.jpg,1\n'
    assert run.history_file.read_text() == expected


def test_write_rows_keeps_file_names_that_are_no_unicode(tmp_path: Path):
    run = start(tmp_path / "run")
    run.write_rows("predictions.csv", ["path"], [[os.fsdecode(b"caf\xe9.jpg")]])
    assert run.predictions_file.read_bytes() == b"path\ncaf\xe9.jpg\n"


def test_full_disk_names_what_is_already_safe(tmp_path: Path):
    run = start(tmp_path / "run")
    with pytest.raises(RunError, match="disk is full") as failure, run.replacing("model.keras"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "already saved: spec.json" in str(failure.value)
    assert "--resume" in str(failure.value)


def test_class_names_come_back_in_order(tmp_path: Path):
    run = start(tmp_path / "run")
    run.write_class_names(["bee", "ant", "naïve"])
    assert run.read_class_names() == ("bee", "ant", "naïve")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: {**content, "class_names": content["class_names"][::-1]},
        lambda content: {**content, "hash": "0" * 64},
        lambda content: content["class_names"],
    ],
)
def test_class_names_that_were_changed_are_refused(tmp_path: Path, change):
    run = start(tmp_path / "run")
    run.write_class_names(["ant", "bee"])
    file = run.path / "class_names.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(RunError, match="was changed"):
        run.read_class_names()


def test_label_files_come_back_and_a_change_is_refused(tmp_path: Path):
    write_label_files(tmp_path, ["ant", "queen bee", "\N{LATIN SMALL LETTER A WITH DIAERESIS}"])
    assert (tmp_path / "labels.txt").read_text(encoding="utf-8") == "ant\nqueen bee\nä\n"
    assert read_label_files(tmp_path) == ("ant", "queen bee", "ä")
    (tmp_path / "labels.txt").write_text("queen bee\nant\nä\n", encoding="utf-8")
    with pytest.raises(ExportError, match="differs from"):
        read_label_files(tmp_path)


@pytest.mark.parametrize("name", ["two\nlines", os.fsdecode(b"caf\xe9")])
def test_label_files_refuse_names_that_are_not_one_line_of_unicode(tmp_path: Path, name: str):
    with pytest.raises(DataError, match="cannot be exported"):
        write_label_files(tmp_path, ["ant", name])


def test_next_free_and_latest_count_runs(tmp_path: Path):
    assert next_free(tmp_path, "digits") == tmp_path / "digits"
    for name in ("digits", "digits-2", "digits-10", "digits-large", "digit"):
        start(tmp_path / name)
    (tmp_path / "digits-11").mkdir()
    assert next_free(tmp_path, "digits") == tmp_path / "digits-3"
    assert latest(tmp_path, "digits").name == "digits-10"
    with pytest.raises(RunError, match="no run called 'letters'"):
        latest(tmp_path, "letters")


def test_environment_names_python_packages_and_the_command():
    environment = describe_environment()
    assert environment["python"].startswith("3.")
    assert "keras" in environment["packages"]
    assert environment["time"].endswith("+00:00")
    json.dumps(environment, allow_nan=False)
