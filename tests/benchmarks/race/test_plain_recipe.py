"""The plain recipe is Keras's own: same images, same network, same freezing."""

import dataclasses
import hashlib
from pathlib import Path

import keras
import numpy as np
import pytest
from labelled import read_records
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from small_models import weights_by_stage

from keras_transfer.config import override
from keras_transfer.data.records import Records
from keras_transfer.data.splits import NAMES, Splits, make_splits
from keras_transfer.specs import DataSpec, ModelSpec, PhaseSpec, RunSpec, TrainingSpec, ViewSpec
from pipelines.benchmarks.race.plain_recipe import (
    augmentation,
    build_plain,
    class_weight,
    fit_plain,
    left_out,
    link_splits,
    read_split,
)

FROZEN = PhaseSpec(name="frozen", epochs=1, warmup_epochs=0)
FINE_TUNE = PhaseSpec(name="fine-tune", epochs=1, unfreeze="last", layer_decay=0.7, warmup_epochs=0)
SPEC = RunSpec(
    seed=3,
    data=DataSpec(image_size=32, val_fraction=0.1, test_fraction=0.6),
    views=ViewSpec(policy="light", horizontal_flip=False),
    model=ModelSpec(backbone="small", last_stage="stage2", weights="none"),
    phases=(FROZEN, FINE_TUNE),
    training=TrainingSpec(class_weights="balanced"),
)


def _read(folder: Path) -> Records:
    records = read_records(dataclasses.replace(SPEC.data, path=str(folder)))
    items = [
        dataclasses.replace(item, digest=hashlib.sha256(records.file(row).read_bytes()).hexdigest())
        for row, item in enumerate(records.items)
    ]
    return dataclasses.replace(records, items=tuple(items))


@pytest.fixture(scope="module")
def linked(digits_folder, tmp_path_factory) -> tuple[Records, Splits, Path]:
    """The digits' records, their splits, and these as folders of links."""
    records = _read(digits_folder)
    splits = make_splits(records, SPEC.data, seed=SPEC.seed)
    folder = tmp_path_factory.mktemp("linked")
    link_splits(records, splits, folder, max_megapixels=100)
    return records, splits, folder


def test_datasets_hold_the_files_of_our_splits_with_our_labels(linked):
    records, splits, folder = linked
    labels = np.array(records.targets.values)
    for split in NAMES:
        rows = getattr(splits, split)
        dataset = read_split(folder, split, SPEC)
        seen = {Path(file).resolve() for file in dataset.file_paths}
        assert seen == {records.file(row).resolve() for row in rows}
        assert [*map(int, dataset.class_names)] == [*range(len(records.class_names))]
        if split != "train":  # which is shuffled anew in every epoch
            given = np.concatenate([one_hot.numpy().argmax(axis=1) for _, one_hot in dataset])
            in_order = [int(Path(file).stem) for file in dataset.file_paths]
            np.testing.assert_array_equal(given, labels[in_order])


def test_files_that_tensorflow_misreads_are_written_as_png(tmp_path):
    source = tmp_path / "images"
    for name in ("dark", "light"):
        (source / name).mkdir(parents=True)
        for number in range(6):
            image = Image.new("L", (8, 8), 20 * number + (120 if name == "light" else 0))
            image.convert("P").save(source / name / f"{number}.bmp")
    records = _read(source)
    splits = make_splits(records, SPEC.data, seed=0)
    link_splits(records, splits, tmp_path / "linked", max_megapixels=100)
    for file in (tmp_path / "linked").glob("*/*/*"):
        assert not file.is_symlink()
        original = Image.open(records.file(int(file.stem))).convert("RGB")
        assert Image.open(file).convert("RGB").tobytes() == original.tobytes()


def test_network_is_that_of_keras_applications():
    spec = override(SPEC, {"model.backbone": "mobilenet_0.25", "model.last_stage": ""})
    recipe = build_plain(spec, ("a", "b", "c"))
    base = keras.applications.MobileNet(
        alpha=0.25, include_top=False, weights=None, input_shape=(32, 32, 3)
    )
    trained = [v for layer in recipe.classifier.trunk.layers for v in layer.weights]
    base.set_weights([v.numpy() for v in trained])
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    kernel, bias = recipe.model.layers[-1].get_weights()
    features = base(keras.applications.mobilenet.preprocess_input(images.copy())).numpy()
    expected = features.mean(axis=(1, 2)) @ kernel + bias
    np.testing.assert_allclose(recipe.model(images).numpy(), expected, atol=1e-5)


@pytest.mark.slow
def test_frozen_stays_bit_identical_and_batchnorm_does_in_both_phases(linked):
    _, _, folder = linked
    training, validation = (read_split(folder, split, SPEC) for split in ("train", "val"))
    recipe = build_plain(SPEC, training.class_names)
    norms = [
        layer
        for layer in recipe.classifier.model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    norms_before = [layer.get_weights() for layer in norms]
    before = weights_by_stage(recipe.classifier)
    fit_plain(recipe, FROZEN, SPEC, training=training, validation=validation)
    between = weights_by_stage(recipe.classifier)
    assert _changed(before, between) == {"head"}
    fit_plain(recipe, FINE_TUNE, SPEC, training=training, validation=validation)
    assert _changed(between, weights_by_stage(recipe.classifier)) == {"stage2", "head"}
    assert len(norms) == 2
    for layer, arrays in zip(norms, norms_before, strict=True):
        for one, other in zip(layer.get_weights(), arrays, strict=True):
            np.testing.assert_array_equal(one, other)


def _changed(before: dict, after: dict) -> set[str]:
    return {
        stage
        for stage in before
        if any((one != other).any() for one, other in zip(before[stage], after[stage], strict=True))
    }


def test_classes_are_weighed_as_scikit_learn_does(linked):
    records, splits, folder = linked
    training = read_split(folder, "train", SPEC)
    labels = np.array(records.targets.values)[splits.train]
    expected = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    assert class_weight(training, SPEC) == pytest.approx(dict(enumerate(expected)))
    assert class_weight(training, RunSpec()) is None


def test_augmentation_has_the_strengths_of_our_views():
    layers = keras.layers
    rotation, zoom, shift, brightness, contrast = augmentation(SPEC.views)
    assert isinstance(rotation, layers.RandomRotation)
    assert rotation.factor == pytest.approx((-10 / 360, 10 / 360))
    assert isinstance(zoom, layers.RandomZoom)
    assert (zoom.height_lower, zoom.height_upper) == pytest.approx((-0.1, 0.1))
    assert isinstance(shift, layers.RandomTranslation)
    assert (shift.width_lower, shift.width_upper) == pytest.approx((-0.05, 0.05))
    assert isinstance(brightness, layers.RandomBrightness)
    assert isinstance(contrast, layers.RandomContrast)
    both = ViewSpec(policy="none", horizontal_flip=True, vertical_flip=True)
    assert [layer.mode for layer in augmentation(both)] == ["horizontal_and_vertical"]
    assert augmentation(ViewSpec(policy="none")) == []


def test_strengths_without_a_layer_are_named():
    assert left_out(SPEC.views) == []
    strong = ["crop_area", "saturation", "hue", "noise", "erasing"]
    assert left_out(ViewSpec(policy="strong")) == strong
