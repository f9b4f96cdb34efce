"""Forked processes are processes: numbers, signals, streams, variables and exit statuses."""

import os
import signal
import subprocess
import sys

import pytest
from forked_process import ForkedProcess

ABOUT = """
import os, sys
sys.stderr.write(os.environ["GIVEN"])
imported = "tensorflow" in sys.modules
print(os.getpid(), os.getppid(), os.getcwd(), sys.argv[1:], input(), imported)
sys.exit(3)
"""
WAITING = "import sys, time; print(flush=True); time.sleep(60)"


@pytest.mark.parametrize(("backend", "is_forked"), [("tensorflow", True), ("jax", False)])
def test_what_a_process_is_given_arrives_and_its_status_returns(tmp_path, backend, is_forked):
    with ForkedProcess(
        [sys.executable, "-c", ABOUT, "a", "b"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "GIVEN": "value", "KERAS_BACKEND": backend},
    ) as process:
        output, errors = process.communicate("words\n", timeout=60)
    own = f"{process.pid} {os.getpid()} {tmp_path.resolve()}"
    assert output == f"{own} ['a', 'b'] words {is_forked and sys.platform == 'linux'}\n"
    assert errors == "value"
    assert process.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(number):
    command = [sys.executable, "-c", WAITING]
    with ForkedProcess(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.readline()
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=20) == -number


def test_a_module_runs_though_it_has_been_imported():
    command = [sys.executable, "-m", "keras_transfer.devices.subprocess_call", "no"]
    with ForkedProcess(command, stderr=subprocess.PIPE, text=True) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "not enough values to unpack" in errors
    assert "RuntimeWarning" not in errors
