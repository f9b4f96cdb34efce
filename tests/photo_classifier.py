"""Fixtures: photographs of all kinds, a small classifier of them, and a finished run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.config import spec_to_dict
from keras_transfer.inference.prediction import LoadedRun, load_run
from keras_transfer.specs import DataSpec, RunSpec
from keras_transfer.storage.class_names import model_name
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.registry import describe_task
from keras_transfer.tasks.single_label import SingleLabel


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 cuttings of two real photographs: JPEG, PNG, grey, with alpha, GIF, BMP and WebP."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("photos")
    kinds = ["jpg", "png", "grey.jpg", "alpha.png", "gif", "bmp", "webp"]
    generator = np.random.default_rng(0)
    for number in range(36):
        photo = Image.fromarray(load_sample_images().images[number % 2])
        height, width = generator.integers(40, 200, 2)
        left, top = generator.integers(0, 400), generator.integers(0, 200)
        cutting = photo.crop((left, top, left + width, top + height))
        kind = kinds[number % len(kinds)]
        mode = {"grey.jpg": "L", "alpha.png": "RGBA"}.get(kind, "RGB")
        cutting.convert(mode).save(folder / f"{number:02d}.{kind}")
    return folder


@pytest.fixture(scope="session")
def odd_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photograph in every unusual kind of file, and in sizes at the edge."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("odd_photos")
    photo = Image.fromarray(load_sample_images().images[0]).crop((100, 50, 231, 147))
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.convert("L").save(folder / "grey.png")
    photo.convert("LA").save(folder / "grey_alpha.png")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("P").save(folder / "palette.bmp")
    photo.convert("1").save(folder / "two_colours.png")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("RGBA").save(folder / "alpha.webp", lossless=True)
    wide = np.asarray(photo.convert("L"), np.uint16) * 257
    Image.fromarray(wide).save(folder / "sixteen_bit.png")
    photo.save(folder / "rotated.jpg", exif=turned)
    photo.save(folder / "progressive.jpg", progressive=True)
    photo.save(folder / "moving.gif", save_all=True, append_images=[photo.rotate(180)])
    for width, height in ((1, 1), (1, 97), (131, 3), (33, 31)):
        photo.resize((width, height)).save(folder / f"{width}_by_{height}.png")
    return folder


@pytest.fixture(scope="session")
def class_names() -> tuple[str, ...]:
    """Not sorted, not ASCII, with a space and with the name of a column."""
    return ("temple", "naïve flower", "path")


@pytest.fixture(scope="session")
def make_classifier() -> Callable[..., keras.Model]:
    """Builds Preprocess, convolution, BatchNorm, dropout and a head with random weights."""

    def build(class_names: Sequence[str], *, dtype: str = "float32") -> keras.Model:
        layers = keras.layers
        keras.utils.set_random_seed(0)
        inputs = keras.Input((32, 32, 3), name="image", dtype="float32")
        x = Preprocess("torch", dtype=dtype)(inputs)
        x = layers.Conv2D(64, 3, strides=4, dtype=dtype)(x)
        x = layers.BatchNormalization(dtype=dtype)(x)
        x = layers.Activation("relu", dtype=dtype)(x)
        x = layers.Flatten(name="pooling", dtype=dtype)(x)
        x = layers.Dropout(0.5, dtype=dtype)(x)
        outputs = layers.Dense(len(class_names), dtype="float32", name="logits")(x)
        return keras.Model(inputs, outputs, name=model_name(class_names))

    return build


@pytest.fixture(scope="session")
def classifier(
    make_classifier: Callable[..., keras.Model], class_names: tuple[str, ...]
) -> keras.Model:
    """A float32 classifier of `class_names`; tests must leave its weights as they are."""
    return make_classifier(class_names)


@pytest.fixture(scope="session")
def finished(
    classifier: keras.Model,
    class_names: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a run of `classifier`, with all that its model needs to predict."""
    folder = RunFolder.create(tmp_path_factory.mktemp("saved_models") / "run")
    spec = RunSpec(data=DataSpec(image_size=32, resize="pad", max_megapixels=1.0))
    folder.write_json("spec.json", spec_to_dict(spec))
    folder.write_class_names(class_names)
    folder.write_json("task.json", describe_task(SingleLabel(tuple(class_names))))
    with folder.replacing("model.keras") as path:
        classifier.save(path)
    return folder.path


@pytest.fixture(scope="session")
def run(finished: Path) -> LoadedRun:
    """That run, loaded."""
    return load_run(finished)
