"""Atomic writes: a half-written file never has its final name."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from keras_transfer.errors import RunError
from keras_transfer.storage.atomic import discard_partials, replacing


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write_folder(path: Path, **files: str) -> None:
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)


def write(target: Path, text: str, *, through: str = "") -> None:
    with replacing(target) as path:
        if through:
            path.symlink_to(through)
        path.write_text(text)


def fail(target: Path, error: Exception) -> None:
    with replacing(target) as path:
        path.write_text("half")
        raise error


def test_replacing_keeps_the_suffix_and_the_old_file_until_the_end(tmp_path: Path):
    target = tmp_path / "deep" / "model.keras"
    with replacing(target) as path:
        path.write_text("old")
    with replacing(target) as path:
        path.write_text("new")
        assert path.name == "model.partial.keras"
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["deep", "deep/model.keras"]


def test_replacing_swaps_whole_folders(tmp_path: Path):
    target = tmp_path / "export" / "1"
    with replacing(target) as path:
        write_folder(path, a="old", b="old")
    with replacing(target) as path:
        write_folder(path, a="new")
    assert names(tmp_path) == ["export", "export/1", "export/1/a"]
    assert (target / "a").read_text() == "new"


def test_replacing_leaves_nothing_new_when_the_writer_fails(tmp_path: Path):
    target = tmp_path / "rows.csv"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail(target, ZeroDivisionError())
    assert names(tmp_path) == ["rows.csv"]
    assert target.read_text() == "old"


def test_replacing_never_puts_a_file_in_the_place_of_a_folder(tmp_path: Path):
    write_folder(tmp_path / "photos", cat="meow")
    with pytest.raises(RunError, match="photos cannot be written"):
        write(tmp_path / "photos", "rows")
    assert names(tmp_path) == ["photos", "photos/cat"]


def test_replacing_tells_what_to_do_when_the_disk_is_full(tmp_path: Path, full_disk):
    target = tmp_path / "history.csv"
    target.write_text("old")
    with full_disk(), pytest.raises(RunError, match="disk is full") as failure:
        write(target, "x" * 10_000)
    assert "MB are free at" in str(failure.value)
    assert "free some space" in str(failure.value)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["history.csv"]


def test_replacing_tells_a_device_without_space(tmp_path: Path):
    with pytest.raises(RunError, match="No space left on device"):
        write(tmp_path / "run.txt", "x", through="/dev/full")
    assert names(tmp_path) == []


def test_replacing_knows_a_full_disk_by_the_words_of_other_libraries(tmp_path: Path):
    words = "Can't write data (errno = 28, error message = 'No space left on device')"
    with pytest.raises(RunError, match="disk is full"):
        fail(tmp_path / "model.keras", RuntimeError(words))


def test_replacing_refuses_a_parent_that_is_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write(tmp_path / "file" / "rows.csv", "x")


def test_killed_writer_leaves_only_partials_and_they_are_discarded(tmp_path: Path):
    program = """
        import sys, time
        from pathlib import Path
        from keras_transfer.storage.atomic import replacing
        folder = Path(sys.argv[1])
        with replacing(folder / "spec.json") as path:
            path.write_text("{}")
        with replacing(folder / "export" / "1") as path:
            path.mkdir()
            with (path / "saved_model.pb").open("w") as file:
                file.write("half")
                file.flush()
                print("ready", flush=True)
                time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGKILL)
    assert names(tmp_path) == [
        "export",
        "export/1.partial",
        "export/1.partial/saved_model.pb",
        "spec.json",
    ]
    discard_partials(tmp_path)
    assert names(tmp_path) == ["export", "spec.json"]


def test_a_folder_set_aside_comes_back_after_a_kill_between_two_renames(tmp_path: Path):
    write_folder(tmp_path / "1.replaced", a="old")
    write_folder(tmp_path / "1.partial", a="new")
    discard_partials(tmp_path)
    assert names(tmp_path) == ["1", "1/a"]
    assert (tmp_path / "1" / "a").read_text() == "old"


def test_replacing_brings_back_a_folder_set_aside_before_it_writes_anew(tmp_path: Path):
    write_folder(tmp_path / "1.replaced", a="old")
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "1", ZeroDivisionError())
    assert names(tmp_path) == ["1", "1/a"]


def test_discard_partials_leaves_other_names_alone(tmp_path: Path):
    for name in ("model.keras", "my.partials.txt", "impartial.csv", "a.partial.csv"):
        (tmp_path / name).write_text("")
    discard_partials(tmp_path)
    assert names(tmp_path) == ["impartial.csv", "model.keras", "my.partials.txt"]
