"""Several devices, and several hosts, train as one device does."""

import dataclasses
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from auditing import find_images
from fitting_process import Fit, command, fit
from jax_processes import JAX, TWO_DEVICES
from PIL import Image

from keras_transfer.devices.hosts import ADDRESSES, HOST, NUM_HOSTS
from keras_transfer.devices.subprocess_call import free_port


def run_all(jobs: Sequence[tuple[Sequence[str], dict[str, str]]]) -> list[Any]:
    """Run commands side by side, each with its own variables; the JSON that each prints last."""
    base = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    processes = [
        subprocess.Popen(
            words,
            env=base | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words, environment in jobs
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
    (elsewhere,) = run_all([(command(shared), {"KERAS_BACKEND": "tensorflow"})])
    answers = [fit(alone), *elsewhere]
    assert [answer["devices"]["num_devices"] for answer in answers] == [1, 2]
    assert_same((alone, answers[0]), (shared, answers[1]), tolerance=1e-4)
    losses = [row["loss"] for row in answers[0]["history"]]
    # Two views of each image take turns.
    assert losses[2] < losses[0]
    assert losses[3] < losses[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of two classes with broken files and a copy."""
    generator = np.random.default_rng(0)
    images = tmp_path_factory.mktemp("audit") / "images"
    for label in "ab":
        folder = images / label
        folder.mkdir(parents=True)
        for number in range(7):
            pixels = generator.integers(0, 256, (20 + number, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / "broken.png").write_bytes(b"no image")
    original = (images / "a/0.png").read_bytes()
    (images / "a/copy.png").write_bytes(original)  # Of another host's share.
    return str(images)


@pytest.fixture(scope="module")
def of_hosts(images, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fit, list[Any]]:
    """What two hosts trained, stopped in between, and for each the figures and its audit."""
    folder = tmp_path_factory.mktemp("hosts")
    shared = Fit(f"{folder}/fit", dropout=0.3, stop_after=1)
    words = command(shared, audit={"images": images, "cache": f"{folder}/cache"})
    return shared, run_all([(words, host) for host in two_hosts()])


@pytest.mark.slow
def test_devices_and_hosts_of_jax_train_as_one_device_does(of_hosts, tmp_path: Path):
    hosts, ((first, _), (second, _)) = of_hosts
    alone = Fit(f"{tmp_path}/alone", dropout=0.3, strategy="cpu")
    on_images = Fit(f"{tmp_path}/images", dropout=0.3, cache="off")
    (answers,) = run_all([(command(alone, on_images), JAX | TWO_DEVICES)])
    answers += [first, second]
    assert [answer["devices"]["num_devices"] for answer in answers] == [1, 2, 2, 2]
    assert_same((alone, answers[0]), (on_images, answers[1]), tolerance=1e-3)
    assert_same((alone, answers[0]), (hosts, first), tolerance=1e-4)
    assert first["history"] == second["history"]


@pytest.mark.slow
def test_hosts_audit_together_what_one_would_alone(of_hosts, images, tmp_path: Path):
    _, ((_, first), (_, second)) = of_hosts
    alone = find_images(images, str(tmp_path / "alone"))
    assert first == second
    assert first["decoded"][1] == 0
    together, alone = ({**found, "decoded": None} for found in (first, alone))
    assert together == alone
    assert len(alone["paths"]) == 15
    assert len(alone["bad"]) == 2
