"""Hosts of a run: who they are, where they meet, and what is said when one of them is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jax_processes import JAX
from small_backbone import save_small

from keras_transfer.config import override
from keras_transfer.devices.hosts import (
    ADDRESSES,
    HOST,
    NUM_HOSTS,
    check_one_host,
    given_host,
    num_hosts_of,
)
from keras_transfer.errors import RunError, SpecError
from keras_transfer.specs import DeviceSpec, RunSpec
from keras_transfer.storage.run_start import await_run, start_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch):
    """Sets Keras's variables; None takes one away."""

    def put(address: str | None, num_hosts: str | None, host: str | None) -> None:
        for name, value in ((ADDRESSES, address), (NUM_HOSTS, num_hosts), (HOST, host)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return put


def test_keras_variables_say_which_host_this_is(variables):
    variables(None, None, None)
    assert given_host() == (0, 1)
    assert num_hosts_of(DeviceSpec()) == 1
    assert num_hosts_of(DeviceSpec(hosts=2)) == 2
    variables("10.0.0.1:1234", "4", "3")
    assert given_host() == (3, 4)
    assert num_hosts_of(DeviceSpec()) == num_hosts_of(DeviceSpec(hosts=4)) == 4
    with pytest.raises(SpecError, match="different numbers of hosts"):
        num_hosts_of(DeviceSpec(hosts=3))
    with pytest.raises(SpecError, match="a study runs on one host only"):
        check_one_host(DeviceSpec(), "a study")
    variables("a:1,b:1", "2", "1")
    assert given_host() == (1, 2)


@pytest.mark.parametrize(
    "values",
    [
        ("10.0.0.1:1234", "4", None),
        ("", "4", "3"),
        ("a:1", "4", "4"),
        ("a:1", "x", "0"),
        ("a", "2", "0"),
        ("a:b", "2", "0"),
        ("a:1,b:1,c:1", "2", "0"),
    ],
)
def test_variables_that_make_no_sense_are_an_error_that_names_them(variables, values):
    variables(*values)
    with pytest.raises(RunError, match=f"{HOST} from 0"):
        given_host()


def test_a_host_waits_for_the_folder_that_the_first_one_makes(tmp_path: Path):
    spec = RunSpec()
    with pytest.raises(RunError, match="need one shared folder"):
        await_run(spec, output=None)
    with pytest.raises(RunError, match="has not started its run"):
        await_run(spec, output=tmp_path / "run", seconds=0.3)
    start_run(spec, output=tmp_path / "run")
    assert await_run(spec, output=tmp_path / "run").path == tmp_path / "run"
    with pytest.raises(RunError, match="another spec"):
        await_run(override(spec, {"seed": 1}), output=tmp_path / "run")


def child_of(parent: int, host: int) -> int | None:
    """The process of a host, found by its variables."""
    for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"{HOST}={host}\0".encode() in Path(f"/proc/{number}/environ").read_bytes():
            return int(number)
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes as Linux lists them")
def test_a_killed_host_ends_the_run_with_a_sentence_that_names_it(
    digits_folder: Path, tmp_path: Path
):
    run, words = tmp_path / "run", "views.count=1 phases.0.epochs=1 phases.1.epochs=300"
    words += " data.train_size=40 data.val_fraction=0.1 data.test_fraction=0.1"
    # A model file: each host reads it by itself.
    backbone = save_small(tmp_path / "small.keras")
    words += (
        f" model.backbone={backbone} model.weights=file model.last_stage=stage3 devices.hosts=2"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.train", "quickstart", "data.source=folder"]
        + [f"data.path={digits_folder}", *words.split(), "--output", str(run)],
        cwd=ROOT,
        env={**os.environ, **JAX, "KERAS_TRANSFER_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 400
        while not (run / "checkpoint" / "phase-1.npz").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        left, lost = (child_of(process.pid, host) for host in (0, 1))
        os.kill(lost, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2
    assert "host 1 of 2 was lost" in errors
    assert "SIGKILL" in errors
    assert "--resume" in errors
    assert not Path(f"/proc/{left}").exists()
    assert not (run / "metrics.json").exists()
