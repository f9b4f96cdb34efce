"""Writes other formats in a separate process: converters print a lot and do not free memory.

`make_formats` starts that process and reports its progress; `python -m …making JOB` runs in it.
Converters read TensorFlow operations, so Keras runs on TensorFlow there, whatever the backend of
this process.
"""

import importlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from keras_transfer.devices import speed_up_imports
from keras_transfer.devices.subprocess_call import describe_status
from keras_transfer.errors import ExportError
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats.registry import FORMATS, megabytes
from keras_transfer.export.verification import subprocess_environment
from keras_transfer.reporting.reporter import Reporter

KERAS_EXPORT_FOLDER: Final = "keras_export"
"""Folder of Keras's own export in the scratch folder, if `Job.keras_export` is set."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The `formats` to write of the model in a run's `model_file`, beside the contract in `folder`.

    `images` is a .npy file, uint8 [N, S, S, C] of the training split, for ranges; `validation` a
    .npz file with `pixels` and `values`, for formats of mixed precision. `scratch` is a folder for
    intermediate files, and for Keras's own export of the model with `keras_export`.
    """

    model_file: Path
    folder: Path
    formats: tuple[str, ...]
    images: Path
    scratch: Path
    validation: Path | None = None
    keras_export: bool = False


def make_formats(job: Job, *, reporter: Reporter) -> dict[str, str]:
    """Write the files of a job.

    Returns:
        the end of the traceback of each format that could not be written, by name.

    Raises:
        ExportError: the process ended with an error.
    """
    failed: dict[str, str] = {}
    words = json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in vars(job).items()})
    command = [sys.executable, "-m", __name__, words]
    environment = subprocess_environment(KERAS_BACKEND="tensorflow")
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith('{"info"'):
                    reporter.info(json.loads(line)["info"])
                if line.startswith('{"failed"'):
                    failed |= json.loads(line)["failed"]
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            log.seek(0)
            raise _died(process.returncode, log.read().decode(errors="replace"))
    return failed


def _died(status: int, log: str) -> ExportError:
    last = "".join(f"\n    {line}" for line in log.strip().splitlines()[-12:])
    return ExportError(
        "the process that writes other formats ended with an error",
        expected="exit status 0",
        received=f"{describe_status(status)}:{last}",
        fix="free some memory if it was killed, or choose fewer --formats",
    )


def _report(**line: Any) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201


def _make(job: Job) -> None:
    """Main function of the separate process."""
    speed_up_imports()
    import keras

    # This also imports Preprocess, which registers it with Keras.
    from keras_transfer.export.formats.source import Source
    from keras_transfer.tasks.registry import register_layers

    register_layers()
    model = keras.models.load_model(job.model_file, compile=False)
    if job.keras_export:
        _report(info="Writing Keras's own export of the model, to compare with …")
        model.export(job.scratch / KERAS_EXPORT_FOLDER, verbose=False)
    source = Source(
        model,
        Contract.read(job.folder),
        np.load(job.images),
        job.scratch,
        _read_validation(job.validation),
        job.model_file.parent,
        lambda text: _report(info=text),
    )
    for name in job.formats:
        _report(info=f"Writing {name} …")
        started = time.perf_counter()
        target = job.folder / FORMATS[name].file
        try:
            _write(source, name, target)
        except Exception:  # Each library has its own types; other formats are still written.
            lines = traceback.format_exc().strip().splitlines()
            _report(failed={name: "\n".join(lines[-4:])[-1000:]})
        else:
            seconds = time.perf_counter() - started
            _report(info=f"{name}: {megabytes(target):.1f} MB in {seconds:.0f} s.")


def _read_validation(file: Path | None) -> tuple[np.ndarray, np.ndarray]:
    if file is None:
        return np.empty(0), np.empty(0)
    with np.load(file) as content:
        return content["pixels"], content["values"]


def _write(source: Any, name: str, target: Path) -> None:
    entry = FORMATS[name]
    module = importlib.import_module(f"keras_transfer.export.formats.{entry.kind.module}")
    module.write(source, target, precision=entry.precision)


def _job(words: str) -> Job:
    content = json.loads(words)
    for name in ("model_file", "folder", "images", "scratch", "validation"):
        content[name] = content[name] and Path(content[name])
    return Job(**content | {"formats": tuple(content["formats"])})


if __name__ == "__main__":
    _make(_job(sys.argv[1]))
