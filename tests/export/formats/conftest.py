"""What the tests of formats share: one small classifier in every format, and its test images."""

import json
from pathlib import Path

import numpy as np
import pytest

from keras_transfer.config import spec_to_dict
from keras_transfer.data.reading import read_pixels
from keras_transfer.errors import ExportError
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats.making import Job, make_formats
from keras_transfer.export.formats.registry import FORMATS, check_libraries
from keras_transfer.models.forward import predict_pixels
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import DataSpec, ModelSpec, RunSpec


@pytest.fixture(scope="session")
def pixels(photos: Path) -> np.ndarray:
    images = read_pixels(sorted(photos.iterdir()), image_size=32, resize="crop", max_megapixels=1)
    return np.stack([image.pixels for image in images])


@pytest.fixture(scope="session")
def expected(classifier, pixels: np.ndarray) -> np.ndarray:
    return predict_pixels(classifier, pixels, activation="softmax")


@pytest.fixture(scope="session")
def contract(class_names) -> Contract:
    return Contract(
        name="tiny", class_names=class_names, image_size=32, resize="crop", max_megapixels=1
    )


@pytest.fixture(scope="session")
def made(
    classifier,
    contract: Contract,
    pixels: np.ndarray,
    expected: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of all formats; beside it `scratch/keras_export`, Keras's own export."""
    try:
        check_libraries(FORMATS.values())
    except ExportError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("made")
    (folder / "formats").mkdir()
    (folder / "scratch").mkdir()
    contract.write(folder / "formats")
    classifier.save(folder / "model.keras")
    model = ModelSpec(backbone="mobilenet_0.25", weights="none", last_stage="stage1")
    spec = RunSpec(data=DataSpec(image_size=32), model=model)
    (folder / "spec.json").write_text(json.dumps(spec_to_dict(spec)))
    np.save(folder / "train.npy", pixels)
    np.savez(folder / "validation.npz", pixels=pixels, values=expected.argmax(axis=1))
    job = Job(
        model_file=folder / "model.keras",
        folder=folder / "formats",
        formats=tuple(FORMATS),
        images=folder / "train.npy",
        scratch=folder / "scratch",
        validation=folder / "validation.npz",
        keras_export=True,
    )
    assert make_formats(job, reporter=SilentReporter()) == {}
    return folder / "formats"
