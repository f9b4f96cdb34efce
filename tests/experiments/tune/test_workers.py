"""Many processes, one search: every proposal once, and a killed worker costs no more than time."""

import os
import signal
import threading
import time

import pytest
from listener import Listener
from searches import DROPOUT, RATE, SPACE, search
from small_backbone import save_small

from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.experiments.tune import best
from keras_transfer.experiments.tune.record import TrialLog
from keras_transfer.experiments.tune.workers import run_workers
from keras_transfer.storage.run_folder import RunFolder


def processes(name: str) -> list[int]:
    """Numbers of the processes that play a role in a search."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if f"KERASTUNER_TUNER_ID={name}\0".encode() in file.read():
                        found.append(int(entry))
            except OSError:
                continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_two_workers_try_everything_once_though_one_is_killed(small_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(best, "run_transfer", lambda *_, **__: None)  # As after any other search.
    # Long enough to be killed in the middle; other processes do not know the backbone `small`.
    file = save_small(tmp_path / "small.keras")
    network = {"model.backbone": str(file), "phases.0.epochs": 15}
    spec = override(small_spec, {**network, "search.space": SPACE})
    trial_log, listener, killed = TrialLog(RunFolder(tmp_path / "s")), Listener(), []

    def kill_in_mid_trial():
        while not killed:
            time.sleep(0.05)
            for begun, progress in trial_log.running():
                if begun.worker == "tuner1" and progress:
                    killed.append(begun.name)
                    for number in processes("tuner1"):
                        os.kill(number, signal.SIGKILL)
                    return

    killer = threading.Thread(target=kill_in_mid_trial, daemon=True)
    killer.start()
    found = search(spec, tmp_path / "s", listener, num_workers=2)
    killer.join(timeout=1)
    assert killed
    assert any("tuner1 was killed (signal SIGKILL)" in sentence for sentence in listener.said)
    tried = sorted((t.values[RATE], t.values[DROPOUT]) for t in found.trials)
    assert tried == sorted((r, d) for r in SPACE[RATE]["values"] for d in SPACE[DROPOUT]["values"])
    assert all(t.is_scored for t in found.trials)
    assert {t.worker for t in found.trials} == {"tuner0", "tuner1"}
    assert not processes("chief") + processes("tuner0") + processes("tuner1")


def test_an_error_in_a_process_ends_the_search_with_it(tmp_path):
    # There is no spec for them to read.
    with pytest.raises(SpecError, match="there are no images, preset, spec file or run folder"):
        run_workers(RunFolder(tmp_path), 1, reporter=Listener())
    assert not processes("chief") + processes("tuner0")
