"""A call in a process of its own: its result, its errors, its end and its memory."""

import os
import textwrap
import time

import numpy as np
import pytest

from keras_transfer.config import load_spec
from keras_transfer.devices.memory import peak_mb, resident_mb
from keras_transfer.devices.subprocess_call import (
    SubprocessCall,
    call_in_subprocess,
)
from keras_transfer.errors import RunError, SpecError


def test_the_result_is_returned(tmp_path):
    log = tmp_path / "log"
    shortened = call_in_subprocess(textwrap.shorten, title="it", log=log, text="one  two", width=20)
    assert shortened == "one two"


def test_errors_of_the_package_are_raised_unchanged(tmp_path):
    with pytest.raises(SpecError) as caught:
        call_in_subprocess(load_spec, title="it", log=tmp_path / "log", source="nowhere")
    with pytest.raises(SpecError) as here:
        load_spec("nowhere")
    assert str(caught.value) == str(here.value)


def test_crash_shows_the_end_of_its_own_traceback(tmp_path):
    log = tmp_path / "log"
    log.write_text("an earlier line\n")
    with pytest.raises(RunError, match="plain, seed 3 crashed") as caught:
        call_in_subprocess(textwrap.shorten, title="plain, seed 3", log=log, text="a b", width=0)
    assert "exit status 1" in caught.value.received
    assert caught.value.received.endswith("ValueError: invalid width 0 (must be > 0)")
    assert "an earlier line" not in caught.value.received


def test_an_end_by_a_signal_names_the_signal(tmp_path):
    with pytest.raises(RunError, match="signal SIGABRT"):
        call_in_subprocess(os.abort, title="it", log=tmp_path / "log")


def test_peak_memory_grows_here_and_is_not_inherited(tmp_path):
    before = peak_mb()
    filled = np.ones(int(before * 1e6) // 8 + 25_000_000)
    assert peak_mb() > before + 100
    assert call_in_subprocess(peak_mb, title="it", log=tmp_path / "log") < 100
    del filled


def test_a_child_can_be_stopped_and_given_variables(tmp_path):
    child = SubprocessCall(
        os.getenv, title="it", log=tmp_path / "log", environment={"GIVEN": "this"}, key="GIVEN"
    )
    assert child.result() == "this"
    assert child.ended
    assert not child.was_killed
    sleeper = SubprocessCall(time.sleep, title="it", log=tmp_path / "log", seconds=60)
    assert not sleeper.ended
    sleeper.stop()
    assert sleeper.was_killed
    assert sleeper.ending == "signal SIGKILL"


def test_resident_memory_goes_up_and_down_and_peak_memory_only_up():
    before = resident_mb()
    block = np.ones(25_000_000)
    held = resident_mb()
    assert held > before + 190
    del block
    assert resident_mb() < held - 150
    assert peak_mb() >= held
