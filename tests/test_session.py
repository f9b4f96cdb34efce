"""The session, and its images and models as plain Keras objects."""

import keras
import numpy as np
import pytest
from listener import Listener

from keras_transfer.config import override
from keras_transfer.devices.processors import num_processors
from keras_transfer.errors import SpecError
from keras_transfer.experiments.session import (
    build_model,
    load_dataset,
    make_spec,
    open_session,
)
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.storage.run_folder import RunFolder

SMALL = {"image_size": 32, "resize": "squash", "batch_size": 50}
TRUNK = {"last_stage": "stage1", "weights": "none", "image_size": 32}


@pytest.fixture(scope="module")
def spec(digits_folder, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("cache"))
    return make_spec(digits_folder, folder=folder, backbone="small", **SMALL | TRUNK)


def collect(dataset) -> list[np.ndarray]:
    return [np.concatenate(column) for column in zip(*dataset.as_numpy_iterator(), strict=True)]


@pytest.fixture(scope="module")
def dataset(spec):
    return load_dataset(spec, reporter=SilentReporter())


def test_datasets_hold_each_image_of_their_split_once(dataset):
    assert dataset.class_names == tuple(f"digit_{number}" for number in range(10))
    sizes = {}
    for split in ("train", "val", "test"):
        images, labels, weights = collect(getattr(dataset, split))
        plain, numbers = dataset.arrays(split)
        assert (images.dtype, images.shape[1:], labels.shape[1:]) == (
            np.float32,
            (32, 32, 3),
            (10,),
        )
        assert len(images) == len(plain)
        np.testing.assert_allclose(weights, 1, rtol=1e-6)
        np.testing.assert_array_equal(labels.sum(axis=0), np.bincount(numbers, minlength=10))
        if split != "train":
            np.testing.assert_array_equal(images, plain)
            np.testing.assert_array_equal(labels.argmax(axis=1), numbers)
        sizes[split] = len(images)
    assert sum(sizes.values()) == 300
    # So that the last batch would be filled up with copies.
    assert all(size % 50 for size in sizes.values())


def test_each_pass_over_the_training_images_is_a_new_epoch(spec):
    def first_passes(number: int) -> list[np.ndarray]:
        train = load_dataset(spec, reporter=SilentReporter()).train
        return [collect(train)[0] for _ in range(number)]

    first, second = first_passes(2)
    # Epoch 0 shows plain images, epoch 1 augmented ones in another order.
    assert len({image.tobytes() for image in first} & {image.tobytes() for image in second}) < 20
    np.testing.assert_array_equal(first_passes(1)[0], first)


def test_class_weights_of_the_spec_are_sample_weights(spec):
    balanced = load_dataset(spec, class_weights="balanced", reporter=SilentReporter())
    _, labels, weights = collect(balanced.train)
    per_class = labels.T @ weights
    np.testing.assert_allclose(per_class, len(labels) / 10, rtol=1e-5)


def test_a_plain_model_learns_from_plain_datasets(spec, dataset):
    model = build_model(spec, class_names=dataset.class_names)
    assert isinstance(model, keras.Model)
    assert model.input_shape == (None, 32, 32, 3)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    given = {"validation_data": dataset.val, "epochs": 3, "shuffle": False, "verbose": 0}
    history = model.fit(dataset.train, **given).history
    assert history["val_loss"][-1] < history["val_loss"][0]
    figures = model.evaluate(dataset.test, return_dict=True, verbose=0)
    images, labels = dataset.arrays("test")
    predicted = model.predict(images.astype(np.float32), verbose=0).argmax(axis=1)
    assert figures["accuracy"] == pytest.approx(np.mean(predicted == labels))


def test_models_are_built_from_names_and_fields():
    model = build_model("small", num_classes=4, dropout=0.0, **TRUNK)
    assert model.output_shape == (None, 4)
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in model.layers)
    assert all(variable.trainable for variable in model.trainable_variables)
    with pytest.raises(SpecError, match="class_names or num_classes"):
        build_model("small", **TRUNK)
    with pytest.raises(SpecError, match="resnet5"):
        build_model("resnet5", num_classes=2)


def test_datasets_outlive_a_cache_that_is_off(spec):
    train = load_dataset(override(spec, {"cache.mode": "off"}), reporter=SilentReporter()).train
    assert len(collect(train)[0]) == 210


def test_fields_go_by_their_bare_or_dotted_names(digits_folder, tmp_path):
    changes = {"phases.0.epochs": 3, "batch_size": 8, "backbone": "vgg19", "seed": 2}
    spec = make_spec(digits_folder, **changes)
    assert (spec.data.path, spec.data.source) == (str(digits_folder), "folder")
    assert (spec.phases[0].epochs, spec.training.batch_size) == (3, 8)
    assert (spec.model.backbone, spec.seed, spec.views.seed) == ("vgg19", 2, 0)
    assert make_spec("photos/list.csv").data.source == "csv"
    RunFolder(tmp_path).write_json("spec.json", {"seed": 7})
    assert make_spec(tmp_path, dropout=0.1).seed == 7
    with pytest.raises(SpecError, match="backbnoe"):
        make_spec(digits_folder, backbnoe="vgg16")


def test_images_are_read_when_they_are_first_used(spec, tmp_path):
    cold = override(spec, {"cache.folder": str(tmp_path / "cold")})
    listener = Listener()
    with open_session(cold, reporter=listener) as session:
        assert not (tmp_path / "cold").exists()
        assert len(session.records.items) == 300
        assert session.data.num_decoded == 300
        assert session.data is session.data
    assert f"computes on 1 CPU ({num_processors()} core" in listener.said[0]


def test_a_run_keeps_its_splits(spec, tmp_path):
    run = RunFolder(tmp_path)
    with open_session(spec, reporter=SilentReporter(), run=run) as session:
        session.write_splits()
    other = override(spec, {"seed": 5})
    with open_session(other, reporter=SilentReporter(), run=run) as again:
        np.testing.assert_array_equal(again.data.splits.test, session.data.splits.test)
    with open_session(other, reporter=SilentReporter()) as fresh:
        assert not np.array_equal(fresh.data.splits.test, session.data.splits.test)


def test_a_cache_that_is_too_small_for_the_images_is_not_used(spec, tmp_path):
    tiny = override(spec, {"cache.limit_gb": 0.001, "cache.folder": str(tmp_path / "tiny")})
    listener = Listener()
    with open_session(tiny, reporter=listener) as session:
        assert session.spec.cache.mode == "off"
        assert session.data.num_decoded == 300
    assert any("The cache is not used" in text for text in listener.said)
    assert not (tmp_path / "tiny").exists()


def test_a_batch_that_cannot_be_divided_is_refused_at_once(spec):
    wrong = override(spec, {"devices.batch_size": 7, "data.path": "no such folder"})
    opened = open_session(wrong, reporter=SilentReporter())
    with pytest.raises(SpecError, match="does not divide a batch into equal parts"):
        opened.__enter__()
