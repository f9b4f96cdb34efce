"""Fixtures of the server's tests: a run with an export, and live servers."""

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from forked_process import ForkedProcess
from http_clients import Live
from photo_classifier import class_names, classifier, make_classifier, photos

from keras_transfer.config import spec_to_dict
from keras_transfer.data.reading import read_pixels
from keras_transfer.errors import ExportError
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats import variants
from keras_transfer.export.formats.making import Job, make_formats
from keras_transfer.export.formats.registry import FORMATS, check_libraries, files_of
from keras_transfer.export.formats.report import write_comparison
from keras_transfer.export.saved_model.network import as_trained
from keras_transfer.export.saved_model.writer import export_saved_model
from keras_transfer.inference.prediction import TASK_FILE
from keras_transfer.models.forward import predict_pixels
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import DataSpec, RunSpec
from keras_transfer.storage.checksums import write_checksums
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.registry import describe_task
from keras_transfer.tasks.single_label import SingleLabel

__all__ = ["class_names", "classifier", "make_classifier", "photos"]

_FORMATS = ("onnx", "litert_float32")
SPEC = RunSpec(name="temples", data=DataSpec(image_size=32, resize="crop", max_megapixels=1.0))


@pytest.fixture(scope="session")
def run_folder(classifier, class_names, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run called 'temples' with export/1; tests must leave it as it is."""
    folder = RunFolder.create(tmp_path_factory.mktemp("serving") / "run")
    folder.write_json("spec.json", spec_to_dict(SPEC))
    folder.write_class_names(class_names)
    folder.write_json(TASK_FILE, describe_task(SingleLabel(tuple(class_names))))
    with folder.replacing("model.keras") as path:
        classifier.save(path)
    version = folder.export_folder / "1"
    export_saved_model(
        as_trained(classifier), version, Contract.of(SPEC, SingleLabel(tuple(class_names)))
    )
    return folder.path


@pytest.fixture(scope="session")
def served_run(run_folder: Path, classifier, photos: Path, tmp_path_factory) -> Path:
    """A run with export/1 and two formats of it, verified as `pipelines.export` does."""
    formats = [FORMATS[name] for name in _FORMATS]
    try:
        check_libraries(formats)
    except ExportError as error:
        pytest.skip(str(error))
    run = tmp_path_factory.mktemp("networks") / "run"
    shutil.copytree(run_folder, run)
    folder = run / "formats" / "1"
    folder.mkdir(parents=True)
    contract = Contract.read(run / "export" / "1")
    contract.write(folder)
    images = read_pixels(sorted(photos.iterdir()), image_size=32, resize="crop", max_megapixels=1)
    pixels = np.stack([image.pixels for image in images])
    np.save(run / "pixels.npy", pixels)
    scratch = run / "scratch"
    scratch.mkdir()
    job = Job(
        model_file=run / "model.keras",
        folder=folder,
        formats=_FORMATS,
        images=run / "pixels.npy",
        scratch=scratch,
    )
    assert make_formats(job, reporter=SilentReporter()) == {}
    outputs = predict_pixels(classifier, pixels, activation="softmax")
    reference = variants.Reference(
        contract=contract,
        pixels_file=run / "pixels.npy",
        outputs=outputs,
        values=outputs.argmax(1),
        trained_in="float32",
    )
    rows = variants.compare(
        variants.of_formats(formats, folder),
        reference,
        failed={},
        timed=False,
        reporter=SilentReporter(),
    )
    write_checksums(folder, (file.relative_to(folder).as_posix() for file in files_of(folder)))
    write_comparison(rows, folder, num_threads=1, notes=[])
    assert not any(row.refusal for row in rows)
    return run


@pytest.fixture(scope="session")
def export_another(make_classifier, class_names) -> Callable[[Path, float], None]:
    """Exports a classifier with an offset bias, so that its predictions differ from others."""

    def export(folder: Path, offset: float) -> None:
        model = make_classifier(class_names)
        bias = model.get_layer("logits").bias
        bias.assign(bias + [offset, 0.0, 0.0])
        export_saved_model(
            as_trained(model), folder, Contract.of(SPEC, SingleLabel(tuple(class_names)))
        )

    return export


@contextlib.contextmanager
def _live(folder: Path, *options: str) -> Iterator[Live]:
    command = [sys.executable, "-m", "pipelines.serve", str(folder), "--port", "0", *options]
    root = Path(__file__).parents[2]
    with ForkedProcess(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            port = next(
                int(match[1])
                for line in process.stdout
                if (match := re.search(r"Listening on http://\S+:(\d+)", line))
            )
            live = Live(process, port)
            live.wait_for(lambda: live.ask("/readyz")[0] == 200)
            yield live
        finally:
            process.kill()


@pytest.fixture(scope="session")
def live_server() -> Callable[..., AbstractContextManager[Live]]:
    """`with live_server(folder, *options) as live:`, ready to serve."""
    return _live


@pytest.fixture(scope="session")
def live(run_folder: Path) -> Iterator[Live]:
    """A server with low limits."""
    options = ("--max-body-megabytes", "0.3", "--max-instances", "8", "--request-seconds", "2")
    with _live(run_folder, *options) as live:
        yield live


@pytest.fixture(scope="session")
def images(photos: Path) -> list[bytes]:
    """36 images of all kinds, encoded."""
    return [file.read_bytes() for file in sorted(photos.iterdir())]


@pytest.fixture(scope="session")
def probabilities(run_folder: Path, images: list[bytes]) -> np.ndarray:
    """Probabilities of the SavedModel without a server, float32 [36, 3]."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(run_folder / "export" / "1"))
    answer = loaded.signatures["serving_default"](image_bytes=tf.constant(images))
    return answer["probabilities"].numpy()
