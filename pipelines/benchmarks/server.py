"""Speed of a server compared with direct calls of the SavedModel, on this machine.

The servers and the load generators run in separate processes; this one calls the SavedModel. All
are measured in turns, round after round, so that a slow phase of the machine affects all of them:

    unloaded   latency with one client, one image per request
    loaded     images per second with 32 clients
    direct     images per second of `serving_default` with batches of 32
    half load  latency with requests at fixed times, half as many as under load
    plain      images per second with 32 clients of the same server with the plain export: the
               network as Keras exports it, with variables and batch normalisation
"""

import contextlib
import dataclasses
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
from typing import Any, Final, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_transfer.config import load_spec
from keras_transfer.data.sources import read_records
from keras_transfer.errors import DataError, RunError
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model.network import as_trained
from keras_transfer.export.saved_model.writer import export_saved_model
from keras_transfer.inference.prediction import LoadedRun
from keras_transfer.serving.settings import SAVED_MODEL, Settings
from keras_transfer.storage.run_folder import RunFolder, version_folders
from keras_transfer.tasks.registry import source_of

NUM_CLIENTS: Final = 32
NUM_ROUNDS: Final = 7
_FIRST_SECONDS: Final = 3
"""How long one client asks a server before anything is measured."""
_MAX_IMAGES: Final = 64
SERVED: Final = re.compile(r"Serving\s+version\s+\d+\s+of\s+([\w.-]+)(?:,\s+with\s+(\w+):|\s*$)")
"""The sentence of a server, which is wrapped: the name of the model, and what computes."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Latencies in seconds and rates in images per second, medians over the rounds.

    `network` is what computed: 'saved_model' or a format. `share` is loaded / direct, the median of
    the rounds' `shares`. `stretch` is the 99th percentile at half load divided by the unloaded
    median. `gain` is loaded / plain, the median of the rounds' `gains`; None without a run.
    """

    network: str
    unloaded_median: float
    loaded_rate: float
    direct_rate: float
    half_load_rate: float
    half_load_median: float
    half_load_p99: float
    share: float
    shares: list[float]
    stretch: float
    plain_rate: float | None
    gain: float | None
    gains: list[float]
    num_failures: int


class _Round(NamedTuple):
    """Results of the load generators, and direct images per second."""

    unloaded: dict[str, Any]
    loaded: dict[str, Any]
    half: dict[str, Any]
    direct_rate: float
    plain: dict[str, Any] | None

    @property
    def rate(self) -> float:
        return _rate(self.loaded)

    def __str__(self) -> str:
        plain = f", {_rate(self.plain):.1f} from the plain export" if self.plain else ""
        return f"{self.rate:.1f} images per second served, {self.direct_rate:.1f} directly{plain}"


_Load = Callable[[dict[str, Any]], dict[str, Any]]
"""Runs a job of the load generator."""


def measure(
    settings: Settings,
    images: Sequence[Path],
    *,
    run: LoadedRun | None,
    seconds: float,
    report: Callable[[str], None],
) -> Measured:
    """Start a server and measure it under load.

    Args:
        settings: of the server, but that it listens on a free port of 127.0.0.1.
        images: of any format; they are converted to JPEG.
        run: whose plain export the same server serves for comparison.
        seconds: of each measurement in each round.
        report: called with a sentence for each round.

    Raises:
        RunError: the server does not start.
    """
    newest = max(version_folders(settings.folder).items())[1]
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = _as_jpegs(images[:_MAX_IMAGES], scratch)
        direct = _Direct(newest, files)
        server = stack.enter_context(_server(settings))
        load, plain = stack.enter_context(_load(server, files)), None
        if run is not None:
            folder = scratch / "plain"
            export_saved_model(as_trained(run.model), folder / "1", run.contract)
            theirs = dataclasses.replace(settings, folder=folder, runtime=SAVED_MODEL)
            plain = stack.enter_context(_load(stack.enter_context(_server(theirs)), files))
        rounds = []
        for number in range(NUM_ROUNDS):
            rounds.append(_measure_round(load, direct, plain, seconds))
            report(f"Round {number + 1} of {NUM_ROUNDS}: {rounds[-1]}.")
    return _sum_up(server.network, rounds)


def _measure_round(load: _Load, direct: "_Direct", plain: _Load | None, seconds: float) -> _Round:
    many = {"clients": NUM_CLIENTS, "seconds": seconds}
    unloaded, loaded = load({"clients": 1, "seconds": seconds}), load(many)
    theirs = plain(many) if plain else None
    direct_rate = direct.rate(seconds)
    half = load({"rate": _rate(loaded) / 2, "seconds": seconds})
    return _Round(unloaded, loaded, half, direct_rate, theirs)


def _rate(part: dict[str, Any]) -> float:
    """Images per second, which the next measurements are divided by."""
    if not part["answered"]:
        raise RunError(
            f"no request was answered within {part['seconds']:g} seconds",
            expected="some answers in each measurement",
            received=f"none from {NUM_CLIENTS} clients",
            fix="measure for longer, with --seconds, and end other programs",
        )
    return float(part["answered"] / part["seconds"])


def find_images(run: Path) -> list[Path]:
    """The test images of a run.

    Raises:
        RunError: this is not a run folder.
        DataError: its images no longer exist.
    """
    folder = RunFolder.open(run)
    listed = {entry["path"] for entry in folder.read_json("splits.json")["rows"]["test"]}
    source = read_records(source_of(load_spec(folder.path)))
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
    rows = [
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
    if measured.gain is not None:
        label = f"plain export, {NUM_CLIENTS} clients"
        ratio = f"loaded is {measured.gain:.2f} × that"
        rows.append([label, f"{measured.plain_rate:.1f}/s", ratio])
    return rows


def _sum_up(network: str, rounds: Sequence[_Round]) -> Measured:
    unloaded, loaded, half, direct_rates, plain = zip(*rounds, strict=True)
    rates = [one.rate for one in rounds]
    shares = [rate / direct for rate, direct in zip(rates, direct_rates, strict=True)]
    plain_rates = [_rate(part) for part in plain if part]
    gains = [ours / theirs for ours, theirs in zip(rates, plain_rates, strict=False)]
    alone = statistics.median(_latencies(unloaded))
    p99 = float(np.percentile(_latencies(half), 99))
    parts = [*unloaded, *loaded, *half, *filter(None, plain)]
    return Measured(
        network=network,
        unloaded_median=alone,
        loaded_rate=statistics.median(rates),
        direct_rate=statistics.median(direct_rates),
        half_load_rate=statistics.median(rates) / 2,
        half_load_median=statistics.median(_latencies(half)),
        half_load_p99=p99,
        share=statistics.median(shares),
        shares=shares,
        stretch=p99 / alone,
        plain_rate=statistics.median(plain_rates) if plain_rates else None,
        gain=statistics.median(gains) if gains else None,
        gains=gains,
        num_failures=sum(part["failures"] for part in parts),
    )


def _latencies(parts: Sequence[dict[str, Any]]) -> list[float]:
    return [latency for part in parts for latency in part["latencies"]]


class _Direct:
    """The SavedModel in this process, without a server."""

    def __init__(self, folder: Path, files: Sequence[Path]):
        self._loaded = tf.saved_model.load(str(folder))
        self._output_name = Contract.read(folder).restored_task.output_name
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
        served[self._output_name].numpy()


def _as_jpegs(images: Sequence[Path], folder: Path) -> list[Path]:
    files = []
    for number, image in enumerate(images):
        data = image.read_bytes()
        if not data.startswith(b"\xff\xd8"):
            buffer = io.BytesIO()
            with Image.open(image) as opened:
                opened.convert("RGB").save(buffer, "JPEG", quality=90)
            data = buffer.getvalue()
        file = folder / f"{number:04d}.jpg"
        file.write_bytes(data)
        files.append(file)
    return files


class _Server(NamedTuple):
    """The port of a running server, the name of its model, and what computes."""

    port: int
    name: str
    network: str


def server_words(settings: Settings) -> list[str]:
    """Words of the command line of a server with these settings, on any free port."""
    given = dataclasses.asdict(settings) | {"host": "127.0.0.1", "port": 0}
    folder = str(given.pop("folder"))
    options = {name: value for name, value in given.items() if value is not None}
    return [folder, *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]


@contextlib.contextmanager
def _server(settings: Settings) -> Iterator[_Server]:
    """A running server with these settings."""
    command = [sys.executable, "-m", "pipelines.serve", *server_words(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            words = ""
            for line in process.stdout:
                words += line
                port = re.search(r"Listening on http://\S+:(\d+)", words)
                served = SERVED.search(words)
                if port and served:
                    yield _Server(int(port[1]), served[1], served[2] or SAVED_MODEL)
                    return
                if re.search(r"is\s+not\s+served", words):
                    process.terminate()
            raise RunError("the server did not start", received=words.strip() or "no output")
        finally:
            process.terminate()


@contextlib.contextmanager
def _load(server: _Server, files: Sequence[Path]) -> Iterator[_Load]:
    """The load generator of a server."""
    command = [sys.executable, "-m", "pipelines.benchmarks.server_load", str(server.port)]
    command += [f"/v1/models/{server.name}:predict", *map(str, files)]
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

        # The first request of a network takes as long as many others.
        run({"clients": 1, "seconds": _FIRST_SECONDS})
        yield run
        jobs.close()
