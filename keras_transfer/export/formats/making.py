"""Makes files of other formats in a separate process: converters print a lot and keep memory.

`make_formats` starts that process and hands on what it says; `python -m …making JOB` is its side.
The converters read TensorFlow's operations, so Keras runs on TensorFlow there, whatever it runs on
here.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from keras_transfer.errors import ExportError
from keras_transfer.export.formats.registry import FORMATS, Format
from keras_transfer.reporting.reporter import Reporter

_PACKAGE_ROOT: Final = Path(__file__).parents[3]
PLAIN_FOLDER: Final = "plain"
"""Where in the scratch folder Keras's own export of the model lies, if it was asked for."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be made: `formats` of the model in `model_file`, beside the contract in `folder`.

    `images` is a .npy file, uint8 [N, S, S, 3] of the training split, for ranges. `scratch` takes
    what is needed on the way, and Keras's own export of the model where `plain` asks for it.
    """

    model_file: Path
    folder: Path
    class_hash: str
    formats: tuple[str, ...]
    images: Path
    scratch: Path
    plain: bool = False


def make_formats(job: Job, *, reporter: Reporter) -> dict[str, str]:
    """Make the files of a job.

    Returns:
        by name of each format that could not be made, the end of its traceback.

    Raises:
        ExportError: the process died.
    """
    failed: dict[str, str] = {}
    words = json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in vars(job).items()})
    command = [sys.executable, "-m", __name__, words]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            env=child_environment(KERAS_BACKEND="tensorflow"),
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith('{"say"'):
                    reporter.info(json.loads(line)["say"])
                if line.startswith('{"failed"'):
                    failed |= json.loads(line)["failed"]
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            log.seek(0)
            raise _died(process.returncode, log.read().decode(errors="replace"))
    return failed


def child_environment(**variables: str) -> dict[str, str]:
    """This process's environment for one that finds this very package, on the CPU, and is quiet."""
    paths = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **variables,
    }


def _died(status: int, log: str) -> ExportError:
    last = "".join(f"\n    {line}" for line in log.strip().splitlines()[-12:])
    return ExportError(
        "the process that makes other formats died",
        expected="a process that ends by itself",
        received=f"exit status {status}:{last}",
        fix="free some memory if it was killed, or name fewer --formats",
    )


def _tell(**said: Any) -> None:
    print(json.dumps(said), flush=True)  # noqa: T201


def _make(job: Job) -> None:
    """The child's side."""
    import keras

    from keras_transfer.backbones.preprocess import Preprocess
    from keras_transfer.export.formats.converters import answering

    model = keras.models.load_model(
        job.model_file, custom_objects={"Preprocess": Preprocess}, compile=False
    )
    if job.plain:
        _tell(say="Writing Keras's own export of the model, to compare with …")
        model.export(job.scratch / PLAIN_FOLDER, verbose=False)
    bench = _Bench(job, model, answering(model), np.load(job.images))
    for name in job.formats:
        _tell(say=f"Writing {name} …")
        started = time.perf_counter()
        try:
            bench.make(FORMATS[name])
        except Exception:  # Each converter has its own; the others are tried all the same.
            lines = traceback.format_exc().strip().splitlines()
            _tell(failed={name: "\n".join(lines[-4:])[-1000:]})
        else:
            size = bench.size_mb(FORMATS[name])
            _tell(say=f"{name}: {size:.1f} MB in {time.perf_counter() - started:.0f} s.")


@dataclass(frozen=True, eq=False)
class _Bench:
    """A job with its network at hand; what several formats need is made once."""

    job: Job
    model: Any
    graph: Any
    images: np.ndarray

    def make(self, entry: Format) -> None:
        from keras_transfer.export.formats import converters

        target, class_hash = self.job.folder / entry.file, self.job.class_hash
        if entry.name == "keras":
            self.model.save(target)
        elif entry.name.startswith("litert"):
            converters.write_litert(
                self.graph,
                target,
                precision=entry.precision,
                images=self.images,
                contract_folder=self.job.folder,
            )
        elif entry.name.startswith("onnx"):
            target.write_bytes(self._onnx(entry.precision).read_bytes())
        else:
            converters.write_openvino(self._onnx(entry.precision), target, class_hash=class_hash)

    def _onnx(self, precision: str) -> Path:
        from keras_transfer.export.formats import converters

        file = self.job.scratch / f"{precision}.onnx"
        if not file.exists() and precision == "float32":
            converters.write_onnx(self.graph, file, class_hash=self.job.class_hash)
        elif not file.exists():
            from keras_transfer.export.formats.converters import quantise

            source = self._onnx("float32")
            quantise(source, file, self.images, scratch=self.job.scratch)
        return file

    def size_mb(self, entry: Format) -> float:
        return sum(file.stat().st_size for file in files_of(self.job.folder / entry.file)) / 1e6


def files_of(artefact: Path) -> Iterator[Path]:
    """All files that an artefact consists of: itself, its weights, or everything below it."""
    if artefact.is_dir():
        yield from sorted(path for path in artefact.rglob("*") if path.is_file())
        return
    yield artefact
    if artefact.suffix == ".xml":
        yield artefact.with_suffix(".bin")


def _job(words: str) -> Job:
    content = json.loads(words)
    for name in ("model_file", "folder", "images", "scratch"):
        content[name] = Path(content[name])
    return Job(**content | {"formats": tuple(content["formats"])})


def main(arguments: Sequence[str]) -> None:
    """Run the job that the command line holds as JSON."""
    _make(_job(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
