"""Several devices, and several hosts, train as one device does."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import auditing_process
import keras
import numpy as np
import pytest
from fitting_process import Fit, fit
from jax_processes import JAX, TWO_DEVICES
from PIL import Image

from keras_transfer.devices.hosts import ADDRESSES, HOST, NUM_HOSTS
from keras_transfer.devices.subprocess_call import free_port


def run_all(jobs: Sequence[tuple[Sequence[str], dict[str, str]]]) -> list[dict[str, Any]]:
    """Run commands side by side, each with its own variables; the JSON that each prints last."""
    base = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    processes = [
        subprocess.Popen(
            command,
            env=base | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, environment in jobs
    ]
    answers = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-3000:]
            answers.append(json.loads(output.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    return answers


def two_hosts() -> list[dict[str, str]]:
    """Variables of two hosts on this machine."""
    meeting = {ADDRESSES: f"127.0.0.1:{free_port()}", NUM_HOSTS: "2"}
    return [JAX | meeting | {HOST: number} for number in ("0", "1")]


def assert_same(one: tuple[Fit, dict], other: tuple[Fit, dict], *, tolerance: float) -> None:
    """Figures of every epoch and all weights, relative to the largest of their kind."""
    for row, other_row in zip(one[1]["history"], other[1]["history"], strict=True):
        assert other_row == pytest.approx(row, rel=tolerance, abs=tolerance)
    weights, other_weights = one[0].weights(), other[0].weights()
    assert weights.keys() == other_weights.keys()
    for path, values in weights.items():
        scale = np.abs(values).max() or 1.0
        np.testing.assert_allclose(other_weights[path], values, rtol=0, atol=tolerance * scale)


@pytest.mark.slow
def test_mirrored_devices_train_as_one_does_even_if_stopped_in_between(tmp_path: Path):
    alone = Fit(f"{tmp_path}/alone")
    shared = dataclasses.replace(
        alone, folder=f"{tmp_path}/shared", strategy="mirrored", logical_devices=2, stop_after=3
    )
    keras.utils.clear_session()  # Weights are compared by their names.
    answers = [fit(alone), *run_all([(shared.command(), {"KERAS_BACKEND": "tensorflow"})])]
    assert [answer["devices"]["num_devices"] for answer in answers] == [1, 2]
    assert_same((alone, answers[0]), (shared, answers[1]), tolerance=1e-4)
    losses = [row["loss"] for row in answers[0]["history"]]
    # Two views of each image take turns.
    assert losses[2] < losses[0]
    assert losses[3] < losses[1]


@pytest.mark.slow
def test_devices_and_hosts_of_jax_train_as_one_device_does(tmp_path: Path):
    def job(name: str, **changes: Any) -> Fit:
        return Fit(f"{tmp_path}/{name}", dropout=0.3, **changes)

    alone, images, hosts = (
        job("alone"),
        job("images", cache="off"),
        job("hosts", stop_after=1),
    )
    answers = run_all([(alone.command(), JAX), (images.command(), JAX | TWO_DEVICES)])
    answers += run_all([(hosts.command(), host) for host in two_hosts()])
    assert [answer["devices"]["num_devices"] for answer in answers] == [1, 2, 2, 2]
    assert_same((alone, answers[0]), (images, answers[1]), tolerance=1e-3)
    assert_same((alone, answers[0]), (hosts, answers[2]), tolerance=1e-4)
    assert answers[2]["history"] == answers[3]["history"]


@pytest.mark.slow
def test_hosts_audit_together_what_one_would_alone(tmp_path: Path):
    generator = np.random.default_rng(0)
    for label in "ab":
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for number in range(7):
            pixels = generator.integers(0, 256, (20 + number, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / "broken.png").write_bytes(b"no image")
    original = (tmp_path / "images/a/0.png").read_bytes()
    (tmp_path / "images/a/copy.png").write_bytes(original)  # Of another host's share.

    images = str(tmp_path / "images")
    alone = auditing_process.run(images, str(tmp_path / "alone"))
    command = [sys.executable, auditing_process.__file__, images, str(tmp_path / "together")]
    together = run_all([(command, host) for host in two_hosts()])
    assert together[0] == together[1]
    assert together[0]["decoded"][1] == 0
    del together[0]["decoded"], alone["decoded"]
    assert together[0] == alone
    assert len(alone["paths"]) == 15
    assert len(alone["bad"]) == 2
