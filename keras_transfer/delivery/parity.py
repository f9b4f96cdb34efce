"""Proof that an exported model is the model: same pictures in, same answers out.

The artefact is served in a separate process in which Keras and this package cannot be imported
(`serve_check.py`). That process runs on the CPU: an accelerator's memory belongs to the training.
"""

import contextlib
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from keras_transfer.data.images import load_encoded
from keras_transfer.delivery.class_list import read_label_files
from keras_transfer.errors import ExportError

TOLERANCES: Final = {"float32": 1e-5, "mixed_bfloat16": 5e-2, "mixed_float16": 1e-2}
"""Largest accepted |Δ probability| by dtype policy.

A batch of another size takes other kernels, which sum in another order. On ResNet50 and MobileNet,
with logits of standard deviation 4, that alone moved a Keras model's own probabilities by up to
6e-6 in float32, 3e-2 in bfloat16 and 5e-3 in float16: artefact and model cannot be held to less.
"""

_SCRIPT: Final = Path(__file__).with_name("serve_check.py")
_LINES_OF_STDERR: Final = 12


@dataclass(frozen=True)
class Parity:
    """How well artefact and model agree; `label_agreement` is a share, 1.0 when all agree."""

    num_files: int
    label_agreement: float
    max_abs_difference: float


@dataclass(frozen=True, eq=False)
class _Answers:
    labels: np.ndarray
    class_names: np.ndarray
    probabilities: np.ndarray
    pixel_probabilities: np.ndarray


def check_parity(
    export_folder: Path,
    files: Sequence[Path],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    max_megapixels: float,
    tolerance: float = TOLERANCES["float32"],
) -> Parity:
    """Serve files from the artefact and compare with what the model said.

    Labels are compared as names. Where the model's two best classes are closer than twice the
    tolerance, rounding decides between them, so either counts as agreement; an exact tie can
    therefore not fail the check.

    Args:
        probabilities: float32 [N, C], the model's, row by row for `files`.
        class_names: the model's, in the order of the columns.
        tolerance: largest accepted |Δ probability|, from `TOLERANCES`.

    Raises:
        ExportError: the artefact cannot be served without Keras, or differs; names the worst file.
        DataError: a file cannot be read.
    """
    if not len(files) == len(probabilities) > 0:
        raise ExportError(
            "the exported model cannot be compared with the model",
            expected="at least one file, and one row of probabilities for each",
            received=f"{len(files)} files and {len(probabilities)} rows",
            fix="compare on the files of the test split",
        )
    _check_names(read_label_files(export_folder), class_names, where="labels.txt")
    answers = _serve(export_folder, files, max_megapixels=max_megapixels)
    for row in answers.class_names:
        _check_names(row, class_names, where="the output class_names")
    differences = _differences(answers, probabilities)
    agrees = _labels_agree(answers.labels, probabilities, class_names, margin=2 * tolerance)
    parity = Parity(len(files), float(agrees.mean()), float(differences.max()))
    # Written so that NaN fails.
    if not (agrees.all() and parity.max_abs_difference <= tolerance):
        worst = int(np.argmax(np.where(agrees, differences, np.inf)))
        top = class_names[int(probabilities[worst].argmax())]
        raise ExportError(
            f"the exported model and the model disagree, most of all on {files[worst]}",
            expected=f"equal labels, and probabilities within {tolerance:g}",
            received=f"{answers.labels[worst]!r} for the model's {top!r}; over {len(files)} files "
            f"{parity.label_agreement:.2%} of the labels agree and probabilities differ by up to "
            f"{parity.max_abs_difference:.2g}",
            fix="do not deploy this export: export again from the run's model.keras",
        )
    return parity


def _check_names(found: Sequence[str], class_names: Sequence[str], *, where: str) -> None:
    if list(found) != list(class_names):
        raise ExportError(
            f"{where} of the exported model lists other classes than the model",
            expected=", ".join(list(class_names)[:10]),
            received=", ".join(list(found)[:10]),
            fix="export again with the class list of the run",
        )


def _differences(answers: _Answers, probabilities: np.ndarray) -> np.ndarray:
    """Largest |Δ probability| of each file, over both signatures."""
    differences = np.abs(answers.probabilities - probabilities).max(axis=1)
    few = len(answers.pixel_probabilities)
    by_pixels = np.abs(answers.pixel_probabilities - probabilities[:few]).max(axis=1)
    differences[:few] = np.maximum(differences[:few], by_pixels)
    return differences


def _labels_agree(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], *, margin: float
) -> np.ndarray:
    column = {name: number for number, name in enumerate(class_names)}
    rows = np.arange(len(labels))
    chosen = probabilities[rows, [column[label] for label in labels]]
    agrees: np.ndarray = probabilities.max(axis=1) - chosen <= margin
    return agrees


def _serve(export_folder: Path, files: Iterable[Path], *, max_megapixels: float) -> _Answers:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    # TensorFlow as a server starts it, not with the kernels that this package asks for.
    environment.pop("TF_ENABLE_ONEDNN_OPTS", None)
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as stderr:
        result = Path(scratch) / "answers.npz"
        # -P: this folder's modules must not pose as installed packages.
        command = [sys.executable, "-P", str(_SCRIPT), str(export_folder), str(result)]
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
            raise _serving_error(export_folder, process.returncode, stderr)
        with np.load(result) as content:
            return _Answers(**content)


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


def _serving_error(folder: Path, code: int, stderr: BinaryIO) -> ExportError:
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace").strip().splitlines()
    return ExportError(
        f"{folder} cannot be served by TensorFlow alone",
        expected="a SavedModel that loads and answers without Keras",
        received=f"exit status {code}:\n    " + "\n    ".join(lines[-_LINES_OF_STDERR:]),
        fix="export again; custom layers must be made of TensorFlow operations",
    )
