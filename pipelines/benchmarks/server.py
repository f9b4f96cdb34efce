"""Speed of a server compared with direct calls of the SavedModel, on this machine.

The server and the load generator run in separate processes; this one calls the SavedModel. All are
measured in turns, round after round, so that a slow phase of the machine affects all of them:

    unloaded   latency with one client, one image per request
    loaded     images per second with 32 clients
    direct     images per second of `serving_default` with batches of 32
    half load  latency with requests at fixed times, half as many as under load
"""

import contextlib
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_transfer.config import load_spec
from keras_transfer.data.sources import read_records
from keras_transfer.errors import DataError, RunError
from keras_transfer.storage.run_folder import RunFolder, version_folders

NUM_CLIENTS: Final = 32
NUM_ROUNDS: Final = 7
_MAX_IMAGES: Final = 64


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Latencies in seconds and rates in images per second, medians over the rounds.

    `share` is loaded / direct, the median of the rounds' `shares`. `stretch` is the 99th percentile
    at half load divided by the unloaded median.
    """

    unloaded_median: float
    loaded_rate: float
    direct_rate: float
    half_load_rate: float
    half_load_median: float
    half_load_p99: float
    share: float
    shares: list[float]
    stretch: float
    num_failures: int


def measure(
    command: Sequence[str],
    folder: Path,
    images: Sequence[Path],
    *,
    seconds: float,
    report: Callable[[str], None],
) -> Measured:
    """Start a server and measure it under load.

    Args:
        command: starts the server on any free port, which it prints.
        folder: the versions that it serves.
        images: of any format; they are converted to JPEG.
        seconds: of each measurement in each round.
        report: called with a sentence for each round.

    Raises:
        RunError: the server does not start.
    """
    newest = max(version_folders(folder).items())[1]
    with tempfile.TemporaryDirectory() as scratch:
        files = _as_jpegs(images[:_MAX_IMAGES], Path(scratch))
        direct = _Direct(newest, files)
        with _server(command) as port, _load(port, files) as run:
            rounds = []
            for number in range(NUM_ROUNDS):
                unloaded = run({"clients": 1, "seconds": seconds})
                loaded = run({"clients": NUM_CLIENTS, "seconds": seconds})
                rate = loaded["answered"] / loaded["seconds"]
                direct_rate = direct.rate(seconds)
                half = run({"rate": rate / 2, "seconds": seconds})
                rounds.append((unloaded, loaded, rate, direct_rate, half))
                report(
                    f"Round {number + 1} of {NUM_ROUNDS}: {rate:.1f} images per second served, "
                    f"{direct_rate:.1f} directly."
                )
    return _sum_up(rounds)


def find_images(run: Path) -> list[Path]:
    """The test images of a run.

    Raises:
        RunError: this is not a run folder.
        DataError: its images no longer exist.
    """
    folder = RunFolder.open(run)
    listed = {entry["path"] for entry in folder.read_json("splits.json")["rows"]["test"]}
    source = read_records(load_spec(folder.path).data)
    files = [source.root / item.path for item in source.items if item.path in listed]
    if not files:
        raise DataError(
            f"the test images of {run} are missing in {source.root}",
            expected="the images that the run was evaluated on",
            received="none of them",
            fix="name other images with --images",
        )
    return files


def describe(measured: Measured) -> list[list[str]]:
    """Rows of a table: quantity, value, and its ratio to another one."""
    return [
        ["unloaded, median", f"{1e3 * measured.unloaded_median:.1f} ms", ""],
        [
            f"loaded, {NUM_CLIENTS} clients",
            f"{measured.loaded_rate:.1f}/s",
            f"{measured.share:.0%} of direct",
        ],
        [f"direct, batches of {NUM_CLIENTS}", f"{measured.direct_rate:.1f}/s", ""],
        [
            f"half load, {measured.half_load_rate:.1f}/s, median",
            f"{1e3 * measured.half_load_median:.1f} ms",
            "",
        ],
        [
            "half load, 99th percentile",
            f"{1e3 * measured.half_load_p99:.1f} ms",
            f"{measured.stretch:.1f} × unloaded",
        ],
    ]


def _sum_up(rounds: list[tuple[Any, Any, float, float, Any]]) -> Measured:
    unloaded, loaded, rates, direct_rates, half = zip(*rounds, strict=True)
    shares = [rate / direct for rate, direct in zip(rates, direct_rates, strict=True)]
    alone = statistics.median(_latencies(unloaded))
    p99 = float(np.percentile(_latencies(half), 99))
    return Measured(
        unloaded_median=alone,
        loaded_rate=statistics.median(rates),
        direct_rate=statistics.median(direct_rates),
        half_load_rate=statistics.median(rates) / 2,
        half_load_median=statistics.median(_latencies(half)),
        half_load_p99=p99,
        share=statistics.median(shares),
        shares=shares,
        stretch=p99 / alone,
        num_failures=sum(part["failures"] for part in (*unloaded, *loaded, *half)),
    )


def _latencies(parts: Sequence[dict[str, Any]]) -> list[float]:
    return [latency for part in parts for latency in part["latencies"]]


class _Direct:
    """The SavedModel in this process, without a server."""

    def __init__(self, folder: Path, files: Sequence[Path]):
        self._loaded = tf.saved_model.load(str(folder))
        encoded = [file.read_bytes() for file in files]
        self._batch = tf.constant([encoded[row % len(encoded)] for row in range(NUM_CLIENTS)])
        self._call()

    def rate(self, seconds: float) -> float:
        """Images per second."""
        begun, num_batches = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds or num_batches < 2:
            self._call()
            num_batches += 1
        return num_batches * NUM_CLIENTS / (time.perf_counter() - begun)

    def _call(self) -> None:
        served = self._loaded.signatures["serving_default"](image_bytes=self._batch)
        served["probabilities"].numpy()


def _as_jpegs(images: Sequence[Path], folder: Path) -> list[Path]:
    files = []
    for number, image in enumerate(images):
        data = image.read_bytes()
        if not data.startswith(b"\xff\xd8"):
            buffer = io.BytesIO()
            Image.open(image).convert("RGB").save(buffer, "JPEG", quality=90)
            data = buffer.getvalue()
        file = folder / f"{number:04d}.jpg"
        file.write_bytes(data)
        files.append(file)
    return files


@contextlib.contextmanager
def _server(command: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The port of a running server and the name of its model."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            words = ""
            for line in process.stdout:
                words += line
                port = re.search(r"Listening on http://\S+:(\d+)", words)
                name = re.search(r"Serving\s+version\s+\d+\s+of\s+(\S+)", words)
                if port and name:
                    yield int(port[1]), name[1]
                    return
            raise RunError("the server did not start", received=words.strip() or "no output")
        finally:
            process.terminate()


@contextlib.contextmanager
def _load(
    address: tuple[int, str], files: Sequence[Path]
) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """A function that runs a job of the load generator."""
    port, name = address
    command = [sys.executable, "-m", "pipelines.benchmarks.server_load", str(port)]
    command += [f"/v1/models/{name}:predict", *map(str, files)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        jobs, results = process.stdin, process.stdout
        assert jobs is not None
        assert results is not None

        def run(job: dict[str, Any]) -> dict[str, Any]:
            jobs.write(json.dumps(job) + "\n")
            jobs.flush()
            result: dict[str, Any] = json.loads(results.readline())
            return result

        yield run
        jobs.close()
