"""Starting, resuming and refusing runs: what is kept, and what an edited spec.json leads to."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keras_transfer.config import load_spec, override
from keras_transfer.errors import DataError, RunError
from keras_transfer.specs import DataSpec, RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import SPEC_HASH, hash_spec, start_run, vacated_on_refusal

SPEC = RunSpec(data=DataSpec(path="photos"))


def fail(run: RunFolder) -> None:
    run.checkpoint_folder.mkdir(exist_ok=True)
    with pytest.raises(DataError), vacated_on_refusal(run):
        raise DataError("the images are not there")


def test_refused_new_run_leaves_nothing(tmp_path: Path):
    run = start_run(SPEC, output=tmp_path / "run")
    fail(run)
    assert not run.path.exists()


@pytest.mark.parametrize(
    "begun",
    [[], ["checkpoint/phase-0.npz"], ["splits.json"], ["run.log"], ["checkpoint/finished.npz"]],
)
def test_refused_resume_removes_nothing(begun: list[str], tmp_path: Path):
    run = start_run(SPEC, output=tmp_path / "run")
    for name in begun:
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("{}")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    fail(start_run(SPEC, output=run.path, resume=True))
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def edit(run: RunFolder, **changes: object) -> None:
    values = json.loads(run.spec_file.read_text())
    for dotted, value in changes.items():
        section, _, name = dotted.partition("__")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    run.spec_file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 9},
        {"data__image_size": 64},
        {"data__resize": "pad"},
        {"model__backbone": "vgg16"},
        {"training__batch_size": 7},
    ],
)
def test_resume_refuses_an_edited_spec(changes: dict[str, object], tmp_path: Path):
    run = start_run(SPEC, output=tmp_path / "run")
    edit(run, **changes)
    with pytest.raises(RunError, match="was changed since the run was started") as failure:
        start_run(load_spec(run.path), output=run.path, resume=True)
    assert "another --output" in failure.value.fix


def test_resume_accepts_another_place_and_another_layout_of_the_file(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = start_run(SPEC, output=tmp_path / "run")
    assert load_spec(run.path).data.path == str(tmp_path / "photos")
    edit(run)
    moved = override(load_spec(run.path), {"data.path": "elsewhere/photos"})
    start_run(moved, output=run.path, resume=True)
    assert load_spec(run.path).data.path == str(tmp_path / "elsewhere" / "photos")
    start_run(load_spec(run.path), output=run.path, resume=True)


def test_runs_of_a_version_with_fewer_fields_are_resumed_and_moved(tmp_path: Path):
    run = start_run(SPEC, output=tmp_path / "run")
    values = json.loads(run.spec_file.read_text())
    del values["data"]["channels"]
    run.spec_file.write_text(json.dumps(values))
    run.write_json("environment.json", {SPEC_HASH: hash_spec(values)})
    for place in ("photos", "elsewhere"):
        moved = override(load_spec(run.path), {"data.path": str(tmp_path / place)})
        start_run(moved, output=run.path, resume=True)
        assert "channels" not in json.loads(run.spec_file.read_text())["data"]
    assert load_spec(run.path).data.path == str(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "place", ["photos/run", "photos/a/b/run", "photos/../photos/x", "link/run"]
)
def test_a_run_among_its_images_is_refused(place: str, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    spec = override(SPEC, {"data.path": str(tmp_path / "photos")})
    with pytest.raises(RunError, match="inside the folder of its images"):
        start_run(spec, output=tmp_path / place)
    assert not list((tmp_path / "photos").iterdir())


def test_the_default_place_of_a_run_is_not_among_its_images(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="start the command in another folder"):
        start_run(override(SPEC, {"data.path": "."}))
    assert not list(tmp_path.iterdir())


START = """
import sys
from keras_transfer.errors import RunError
from keras_transfer.specs import DataSpec, RunSpec
from keras_transfer.storage.run_start import start_run
try:
    spec = RunSpec(data=DataSpec(path="photos"))
    run = start_run(spec, output=sys.argv[1], resume=sys.argv[2] == "resume")
except RunError as error:
    sys.exit(error.what)
print("started", flush=True)
sys.stdin.read()
"""


def start_elsewhere(folder: Path, how: str, *, waits: bool = False) -> subprocess.Popen[str]:
    """A process that starts or resumes a run, and then waits for its input to end."""
    return subprocess.Popen(
        [sys.executable, "-c", START, str(folder), how],
        stdin=subprocess.PIPE if waits else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_two_processes_cannot_write_one_run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    run = start_run(SPEC, output=folder)
    again = start_run(SPEC, output=folder, resume=True)
    with start_elsewhere(folder, "resume") as other:
        assert "another process writes the run" in other.communicate(timeout=60)[1]
    del run, again
    with start_elsewhere(folder, "resume", waits=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "started\n"
        with pytest.raises(RunError, match="another process writes the run"):
            start_run(SPEC, output=folder, resume=True)
        other.kill()
    assert start_run(SPEC, output=folder, resume=True).path == folder


def test_a_run_is_written_where_files_cannot_be_locked(tmp_path: Path, monkeypatch):
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert start_run(SPEC, output=tmp_path / "run").spec_file.is_file()


def test_of_two_processes_that_start_a_run_at_once_one_does(tmp_path: Path):
    started = [start_elsewhere(tmp_path / "run", "new", waits=True) for _ in range(5)]
    outputs = [process.communicate(timeout=60) for process in started]
    assert sorted(said for said, _ in outputs) == ["", "", "", "", "started\n"]
    assert all(
        "another process" in words or "already has" in words or not words for _, words in outputs
    )
