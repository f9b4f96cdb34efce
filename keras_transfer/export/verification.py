"""Runs artefacts in a process where keras and keras_transfer cannot be imported, and times them.

The process (`isolated_script.py`) keeps running between calls, so that several artefacts, in one or
in several processes, can be timed in turns. It runs on the CPU: an accelerator's memory belongs to
the training.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from keras_transfer.data.images import load_encoded
from keras_transfer.devices.subprocess_call import describe_status
from keras_transfer.errors import ExportError
from keras_transfer.export.formats.registry import Kind
from keras_transfer.reporting.reporter import Reporter, SilentReporter

_SCRIPT: Final = Path(__file__).with_name("isolated_script.py")
_PACKAGE_ROOT: Final = Path(__file__).parents[2]
_OPENERS: Final = Path(__file__).with_name("formats")
_SHOWN_LINES: Final = 12


class IsolatedProcess:
    """A process that opens and runs artefacts of one kind; a context manager that ends it."""

    def __init__(self, kind: Kind, *, environment: Mapping[str, str] | None = None):
        """Start the process.

        Args:
            environment: additional environment variables.
        """
        self._kind = kind
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        # -P: modules of this folder must not be imported as installed packages.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), *kind.blocked],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=subprocess_environment(**environment or {}),
            text=True,
        )

    def __enter__(self) -> "IsolatedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def open(
        self,
        path: Path,
        *,
        input_shape: tuple[int, int, int],
        num_threads: int | None = None,
        precision: str = "float32",
    ) -> "IsolatedArtefact":
        """Open an artefact.

        Args:
            input_shape: [S, S, C] of the images that it takes.
            num_threads: threads of one call; None is the library's default.
            precision: 'bfloat16' lets OpenVINO compute in it.

        Raises:
            ExportError: it cannot be opened; `received` has the end of the traceback.
        """
        opener = _OPENERS / f"{self._kind.module}.py"
        reply = self.order(
            path,
            do="open",
            opener=str(opener),
            path=str(path.absolute()),
            num_threads=num_threads,
            **({} if precision == "float32" else {"precision": precision}),
        )
        return IsolatedArtefact(self, path, reply["class_hash"], reply["number"], input_shape)

    def order(self, artefact: Path, **order: Any) -> dict[str, Any]:
        """Send a command, see the docstring of the script, and return its result.

        Raises:
            ExportError: the command failed, or the process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # The process ended; the end of its standard error has the reason.
        line = self._process.stdout.readline()
        if not line.strip():
            raise self._ended(artefact)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise ExportError(
                f"{artefact} cannot be run by {self._kind.runtime} alone",
                expected="an artefact that its library opens and runs, without keras and "
                "keras_transfer",
                received=_last_lines(reply["error"]),
                fix="export again; custom layers must consist of operations that the format has",
            )
        return reply

    def _ended(self, artefact: Path) -> ExportError:
        """The error of a process that ended without a reply."""
        status = self._process.wait()
        self._stderr.seek(0)
        output = _last_lines(self._stderr.read().decode(errors="replace"))
        killed = status in (-signal.SIGKILL, -signal.SIGTERM)
        return ExportError(
            f"the process that checks {artefact} was ended from outside"
            if killed
            else f"the process that checks {artefact} crashed",
            expected=f"a process that runs the artefact with {self._kind.runtime} to the end",
            received=f"{describe_status(status)}{', its last output:' if output else ''}{output}",
            fix="the artefact itself is not known to be wrong: if memory ran out (the usual cause "
            "of SIGKILL), close other programs, then export again"
            if killed
            else "correct the error above, then export again",
        )


def _last_lines(text: str) -> str:
    return "".join(f"\n    {line}" for line in text.strip().splitlines()[-_SHOWN_LINES:])


@dataclass(frozen=True, eq=False)
class IsolatedArtefact:
    """An open artefact in an isolated process.

    `class_hash` is the one in the file, '' where the format cannot store it.
    """

    process: IsolatedProcess
    path: Path
    class_hash: str
    _number: int
    _input_shape: tuple[int, int, int]

    def predict(self, pixels_file: Path) -> np.ndarray:
        """Outputs float32 [N, K] of the images uint8 [N, S, S, C] in a .npy file.

        They run in batches of 32, the last one smaller; the first image runs once more in a batch
        of one.

        Raises:
            ExportError: it fails on a batch.
        """
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, "outputs.npy")
            self._order("predict", pixels=str(pixels_file.absolute()), outputs=str(file))
            outputs: np.ndarray = np.load(file)
        return outputs

    def serve(self, images_file: Path) -> dict[str, np.ndarray]:
        """Outputs of all signatures of a SavedModel for the images of `write_images`.

        The outputs of serving_default by name, and of the first few images also
        'pixel_outputs' and 'square_outputs' float32 [few, K] of serving_pixels and serving_resized,
        and 'heat_map' float32 [few, h, w] of serving_explain. 'refusals' has a text for each image:
        why serving_default refuses the file, and was given its conversion instead; else ''.

        Raises:
            ExportError: a signature fails or is missing.
        """
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, "outputs.npz")
            self._order("serve", images=str(images_file.absolute()), outputs=str(file))
            with np.load(file) as content:
                return dict(content)

    def seconds(self, batch_size: int, calls: int) -> list[float]:
        """Seconds of each of `calls` calls; the first call of a batch size is not counted.

        Raises:
            ExportError: it fails on a batch of this size.
        """
        shape = (batch_size, *self._input_shape)
        return list(self._order("time", shape=shape, calls=calls)["seconds"])

    def _order(self, name: str, **order: Any) -> dict[str, Any]:
        return self.process.order(self.path, do=name, number=self._number, **order)


def write_images(files: Iterable[Path], target: Path, *, max_megapixels: float) -> None:
    """Write the bytes of files into one file, as `IsolatedArtefact.serve` reads them.

    After each follows its conversion to PNG, which is empty for files that are not converted.

    Raises:
        DataError: a file cannot be read.
    """
    with target.open("wb") as stream:
        for file in files:
            encoded = load_encoded(file, max_megapixels=max_megapixels)
            original = file.read_bytes()
            for data in (original, b"" if encoded == original else encoded):
                stream.write(len(data).to_bytes(8, "big") + data)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long to measure: `calls` of one artefact in a round, by batch size.

    For each batch size there are `least_rounds` to `most_rounds` rounds. After `least_rounds`, no
    round starts once `seconds` have passed for all artefacts together.
    """

    calls: Mapping[int, int]
    least_rounds: int
    most_rounds: int
    seconds: float


def time_in_turns(
    artefacts: Mapping[str, IsolatedArtefact],
    timing: Timing,
    *,
    reporter: Reporter | None = None,
) -> dict[str, dict[int, list[float]]]:
    """Seconds of single calls by name and batch size; one artefact runs, the others wait.

    Every artefact runs once in each round, so a disturbance slows all of them. It still changes the
    figures: no other program should compute at that time.
    """
    reporter = reporter or SilentReporter()
    seconds: dict[str, dict[int, list[float]]] = {name: {} for name in artefacts}
    for batch_size, calls in timing.calls.items():
        started = time.perf_counter()
        with reporter.progress(f"timing batches of {batch_size}") as count:
            for number in range(timing.most_rounds):
                is_late = time.perf_counter() - started > timing.seconds
                if number >= timing.least_rounds and is_late:
                    break
                for name, artefact in artefacts.items():
                    taken = artefact.seconds(batch_size, calls)
                    seconds[name].setdefault(batch_size, []).extend(taken)
                count(number + 1, timing.most_rounds)
    return seconds


def subprocess_environment(**variables: str) -> dict[str, str]:
    """Environment of the subprocess: CPU only, few messages, same package path."""
    paths = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **variables,
    }
