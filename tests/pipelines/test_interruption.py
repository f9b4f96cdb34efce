"""Ctrl-C: the first one is confirmed, the second one ends the process whatever it does."""

import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import arguments, cli

ROOT = Path(__file__).parents[2]
PROGRAM = """
import hashlib, signal, sys, time
# Background jobs of a shell ignore Ctrl-C, and so do their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pipelines.arguments import run_verb
def swallows():
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print("swallowed", flush=True)
def runs_native_code():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
def obeys():
    time.sleep(60)
class Slow:
    def __del__(self):
        time.sleep(60)
def drops():
    one = Slow()
    del one
    time.sleep(60)
verb = globals()[sys.argv[1]]
def started():
    print("started", flush=True)
    verb()
sys.exit(run_verb(started, stopped="all is kept"))
"""


def start(verb: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, verb],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize("verb", ["swallows", "runs_native_code"])
def test_second_interrupt_ends_a_process_that_loses_the_first(verb: str):
    with start(verb) as process:
        time.sleep(0.5)  # Until the verb, which follows its message, has begun.
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert process.stderr.readline() == "\n"
        assert "Ctrl-C again ends the process" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == arguments.INTERRUPTED


@pytest.mark.parametrize("verb", ["obeys", "drops"])
def test_first_interrupt_ends_a_process_with_its_own_words(verb: str):
    """Also where Python drops it, because it comes in a `__del__`."""
    with start(verb) as process:
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == arguments.INTERRUPTED
    assert "Traceback" not in errors
    assert errors.endswith("stopped; all is kept\n")


@pytest.mark.parametrize("name", cli.VERBS)
def test_only_verbs_that_train_speak_of_resuming_a_training(name: str, monkeypatch, capsys):
    verb = importlib.import_module(f"pipelines.{name}")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("argparse.ArgumentParser.parse_args", interrupt)
    monkeypatch.setattr("argparse.ArgumentParser.parse_intermixed_args", interrupt)
    assert verb.main([]) == arguments.INTERRUPTED
    said = capsys.readouterr().err
    trains = ("train", "tune", "pretrain", "distill", "compress", "extend", "adapt")
    assert ("a training continues" in said) == (name in trains)
    assert ("the rows so far are kept" in said) == (name == "predict")


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["train", "quickstart", "--output", LONG],
        ["train", "quickstart", f"name={LONG}"],
        ["train", "quickstart", "--output", f"a/{LONG}/b"],
        ["train", LONG],
        ["evaluate", "run", "--output", f"{'x' * 250}.json"],
        ["evaluate", LONG],
        ["predict", "run", "photo.jpg", "--output", f"{'x' * 245}.csv"],
        ["predict", LONG, "-"],
        ["export", LONG],
        ["explain", "run", "photo.jpg", "--output", LONG],
    ],
)
def test_names_that_are_too_long_are_refused(words: list[str], tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    verb = importlib.import_module(f"pipelines.{words[0]}")
    assert verb.main(words[1:]) == arguments.USER_ERROR
    said = capsys.readouterr().err
    assert any(words in said for words in ("is too long", "called 'xxx", "that has 300 bytes"))
    assert list(tmp_path.iterdir()) == []
