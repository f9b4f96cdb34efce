"""Exported models asked in a process of their own, in which Keras and this package are unknown.

That process (`serve_check.py`) runs on the CPU: an accelerator's memory belongs to the training.
"""

import contextlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from keras_transfer.data.images import load_encoded
from keras_transfer.errors import ExportError

_SCRIPT: Final = Path(__file__).with_name("serve_check.py")
_LINES: Final = 12


@dataclass(frozen=True, eq=False)
class Answers:
    """What one export said of N images, and how long it took.

    `pixel_probabilities` and `square_probabilities` are those of the first few, by their pixels and
    by the square the network sees; `heat_map` is float32 [few, h, w]. `seconds` are those of each
    round by batch size, empty unless exports were compared.
    """

    label: np.ndarray
    class_names: np.ndarray
    probabilities: np.ndarray
    top_class_names: np.ndarray
    top_probabilities: np.ndarray
    pixel_probabilities: np.ndarray
    square_probabilities: np.ndarray
    heat_map: np.ndarray
    seconds: dict[int, list[float]] = field(default_factory=dict)


def serve_alone(
    export_folders: Sequence[Path], files: Iterable[Path], *, max_megapixels: float
) -> list[Answers | str]:
    """Serve files from each export; of several ones, also time them in turns.

    Returns:
        for each export its answers, or the last words of what cannot be served.

    Raises:
        DataError: a file cannot be read.
        ExportError: the process was killed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        _run(scratch, export_folders, files, max_megapixels=max_megapixels)
        timed = Path(scratch, "seconds.json")
        seconds = json.loads(timed.read_text(encoding="utf-8")) if timed.exists() else {}
        return [_read(Path(scratch), number, seconds) for number in range(len(export_folders))]


def _run(
    scratch: str, export_folders: Sequence[Path], files: Iterable[Path], *, max_megapixels: float
) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    # -P: this folder's modules must not pose as installed packages.
    command = [sys.executable, "-P", str(_SCRIPT), scratch, *map(str, export_folders)]
    with tempfile.TemporaryFile() as stderr:
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment,
        ) as process:
            try:
                _send(process, files, max_megapixels=max_megapixels)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            stderr.seek(0)
            words = _last_lines(stderr.read().decode(errors="replace"))
            raise cannot_be_served(export_folders[0], f"exit status {process.returncode}:{words}")


def _send(process: subprocess.Popen, files: Iterable[Path], *, max_megapixels: float) -> None:
    assert process.stdin is not None
    # A broken pipe means that the process died: its own last words say why.
    try:
        with contextlib.suppress(BrokenPipeError):
            for file in files:
                encoded = load_encoded(file, max_megapixels=max_megapixels)
                process.stdin.write(struct.pack(">Q", len(encoded)) + encoded)
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _read(scratch: Path, number: int, seconds: dict[str, dict[str, list[float]]]) -> Answers | str:
    words = scratch / f"{number}.txt"
    if words.exists():
        return _last_lines(words.read_text(encoding="utf-8"))
    own = {int(size): by_number[str(number)] for size, by_number in seconds.items()}
    with np.load(scratch / f"{number}.npz") as content:
        return Answers(**content, seconds=own)


def _last_lines(text: str) -> str:
    lines = text.strip().splitlines()[-_LINES:]
    return "".join(f"\n    {line}" for line in lines)


def cannot_be_served(folder: Path, received: str) -> ExportError:
    """The error of an artefact that does not load or does not answer."""
    return ExportError(
        f"{folder} cannot be served by TensorFlow alone",
        expected="a SavedModel that loads and answers without Keras",
        received=received,
        fix="export again; custom layers must be made of TensorFlow operations",
    )
