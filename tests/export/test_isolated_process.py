"""The process that checks artefacts: why it ended is said as it was."""

import os
import signal
from pathlib import Path

import pytest

from keras_transfer.errors import ExportError
from keras_transfer.export.formats.registry import SAVED_MODEL
from keras_transfer.export.verification import IsolatedProcess


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_process_is_not_blamed_on_the_artefact(number: signal.Signals, tmp_path: Path):
    with IsolatedProcess(SAVED_MODEL) as process:
        os.kill(process._process.pid, number)
        process._process.wait()
        with pytest.raises(ExportError, match="ended from outside") as failure:
            process.open(tmp_path / "model", input_shape=(8, 8, 3))
    assert number.name in failure.value.received
    assert "layers" not in str(failure.value)
    assert "memory" in failure.value.fix


def test_crashed_process_names_its_signal(tmp_path: Path):
    with IsolatedProcess(SAVED_MODEL) as process:
        os.kill(process._process.pid, signal.SIGABRT)
        process._process.wait()
        with pytest.raises(ExportError, match="crashed") as failure:
            process.open(tmp_path / "model", input_shape=(8, 8, 3))
    assert "SIGABRT" in failure.value.received


def test_artefact_that_fails_is_named(tmp_path: Path):
    with (
        IsolatedProcess(SAVED_MODEL) as process,
        pytest.raises(ExportError, match="cannot be run by tensorflow alone"),
    ):
        process.order(tmp_path / "model", do="time", number=7, shape=(1, 8, 8, 3), calls=1)
