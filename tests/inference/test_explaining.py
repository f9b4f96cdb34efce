"""Heat maps: what they equal, that they follow the object, and files explained in order."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.data.images import load_encoded
from keras_transfer.data.records import BadFile
from keras_transfer.errors import DataError
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model.network import as_trained, frozen, grad_cam, heat_map
from keras_transfer.export.saved_model.writer import export_saved_model
from keras_transfer.inference.explanation import HIGHEST, Explanation, explain_files, explainer
from keras_transfer.inference.prediction import LoadedRun, predict_files
from keras_transfer.models.classifier import build_classifier
from keras_transfer.specs import ModelSpec
from keras_transfer.tasks.single_label import SingleLabel

FAMILIES = [
    "vgg16",
    "mobilenet_0.25",
    "mobilenet_v3_small_minimalistic",
    "efficientnet_b0",
    "convnext_tiny",
]
"""A map begins at the last layer: max pooling, ReLU6, ReLU, swish and a sum."""

TASK = SingleLabel(("a", "b", "c"))


def build(backbone: str, *, size: int, **model) -> keras.Model:
    spec = ModelSpec(backbone=backbone, weights="none", **model)
    return build_classifier(spec, image_size=size, task=SingleLabel(("a", "b", "c")), seed=0).model


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def importance(model: keras.Model, features: np.ndarray, column: int, pooling: str) -> np.ndarray:
    """Channel by channel, [B, K], the mean over places of the logit's gradient, by hand."""
    batch, height, width, channels = features.shape
    weights = model.get_layer("logits").get_weights()[0][:, column]
    if any(layer.name == "hidden" for layer in model.layers):
        hidden, bias = model.get_layer("hidden").get_weights()
        means = features.mean(axis=(1, 2))
        weights = ((means @ hidden + bias > 0) * weights) @ hidden.T
    if pooling == "flatten":
        weights = weights.reshape(height * width, channels).sum(axis=0)
    return np.broadcast_to(weights, (batch, channels)) / (height * width)


@pytest.mark.parametrize(
    ("pooling", "head"),
    [("avg", "linear"), ("max", "linear"), ("flatten", "linear"), ("avg", "mlp")],
)
def test_grad_cam_equals_its_closed_form(pooling, head):
    model = build("mobilenet_0.25", size=64, last_stage="stage3", pooling=pooling, head=head)
    network = as_trained(model)
    features = network.trunk(tf.cast(noise(2, 64, 64, 3), tf.float32))
    received = grad_cam(network, features, network.head(features), tf.constant([1, 1]))
    shares = importance(model, features.numpy(), 1, pooling)
    expected = np.einsum("bhwk,bk->bhw", features, shares)
    assert received.shape == features.shape[:3]
    np.testing.assert_allclose(received, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_grad_cam_of_average_pooling_is_the_class_activation_map_by_its_places():
    model = build("vgg16", size=64, last_stage="stage2")
    network = as_trained(model)
    features = network.trunk(tf.cast(noise(2, 64, 64, 3), tf.float32))
    activation_map = features.numpy() @ model.get_layer("logits").get_weights()[0][:, 2]
    received = grad_cam(network, features, network.head(features), tf.constant([2, 2]))
    scale = np.abs(activation_map).max() / (16 * 16)
    np.testing.assert_allclose(received, activation_map / (16 * 16), rtol=0, atol=1e-6 * scale)


def test_heat_map_lies_in_0_to_1_and_is_zero_without_a_place_that_speaks_for_the_class():
    signed = tf.constant([[[-2.0, 0.0], [1.0, 4.0]], [[-1.0, -2.0], [-3.0, -4.0]]])
    np.testing.assert_array_equal(heat_map(signed), [[[0, 0], [0.25, 1]], [[0, 0], [0, 0]]])
    np.testing.assert_array_equal(heat_map(tf.zeros([1, 2, 2])), np.zeros([1, 2, 2]))


@pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="compiling whole trunks for JAX takes a CPU minutes",
)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_last_layer_gives_a_finite_map_of_its_places(name):
    size = max(64, BACKBONES[name].minimal_size)
    model = build(name, size=size)
    network = as_trained(model)
    features = network.trunk(tf.cast(noise(2, size, size, 3), tf.float32))
    signed = grad_cam(network, features, network.head(features), tf.constant([HIGHEST, 0])).numpy()
    assert signed.shape == (2, *model.get_layer("pooling").input.shape[1:3])
    assert np.isfinite(signed).all()
    heat = heat_map(signed).numpy()
    assert ((heat >= 0) & (heat <= 1)).all()
    np.testing.assert_array_equal(heat.max(axis=(1, 2)), (signed.max(axis=(1, 2)) > 0) * 1.0)


def test_mixed_precision_gives_a_finite_map(make_classifier, class_names):
    model = make_classifier(class_names, dtype="mixed_bfloat16")
    probabilities, heat = explainer(model, TASK)(noise(3, 32, 32, 3), HIGHEST)
    assert probabilities.dtype == heat.dtype == np.float32
    assert np.isfinite(heat).all()


CELL, SIDE = 8, 64
RED, BLUE = (220, 30, 30), (30, 30, 220)


def draw_patch(image: np.ndarray, row: int, column: int, colour: tuple[int, int, int]) -> None:
    image[CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)] = colour


@pytest.fixture(scope="module")
def patch_model() -> keras.Model:
    """Tells on noise whether there is a red patch somewhere, and whether a blue one.

    Trained on images of 2 x 2 cells, used on 8 x 8 of them, as convolutions can.
    """

    def assemble(side: int) -> keras.Model:
        layers = keras.layers
        x = inputs = keras.Input((side, side, 3), name="image")
        x = layers.Rescaling(1 / 255)(x)
        for _ in range(3):
            x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
        x = layers.GlobalAveragePooling2D(name="pooling")(x)
        return keras.Model(inputs, layers.Dense(2, name="logits")(x))

    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    images = generator.integers(90, 160, (1024, 2 * CELL, 2 * CELL, 3)).astype(np.uint8)
    shown = generator.integers(0, 2, (1024, 2))
    for image, row in zip(images, shown, strict=True):
        places = generator.permutation(4)
        for colour in np.flatnonzero(row):
            draw_patch(image, *divmod(places[colour], 2), (RED, BLUE)[colour])
    small = assemble(2 * CELL)
    # Each class for itself: what tells two that exclude each other may be the other's absence.
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    accuracy = keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")
    small.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss, metrics=[accuracy])
    history = small.fit(images, shown, batch_size=32, epochs=6, verbose=0)
    assert history.history["accuracy"][-1] > 0.99
    large = assemble(SIDE)
    large.set_weights(small.get_weights())
    return large


def test_heat_is_highest_where_the_object_of_the_class_is(patch_model):
    explain = explainer(patch_model, TASK)
    images = np.random.default_rng(1).integers(90, 160, (6, SIDE, SIDE, 3)).astype(np.uint8)
    places = [((1, 1), (6, 5)), ((2, 6), (5, 1)), ((6, 6), (1, 3))] * 2
    for image, (red, blue) in zip(images, places, strict=True):
        draw_patch(image, *red, RED)
        draw_patch(image, *blue, BLUE)
    for column in range(2):
        _, heat = explain(images, column)
        assert heat.shape == (6, SIDE // CELL, SIDE // CELL)
        for one, place in zip(heat, places, strict=True):
            hottest = np.array(np.unravel_index(one.argmax(), one.shape))
            # A patch is as large as a cell; strides may put its centre on the border of two.
            assert np.abs(hottest - place[column]).max() <= 1
            other = place[1 - column]
            assert one[other] < 0.5


def test_explainer_gives_every_image_the_same_map_alone_and_in_company(patch_model):
    explain, images = explainer(patch_model, TASK), noise(5, SIDE, SIDE, 3)
    probabilities, heat = explain(images, HIGHEST)
    for row in range(5):
        alone = explain(images[row : row + 1], int(probabilities[row].argmax()))
        np.testing.assert_allclose(alone[0][0], probabilities[row], rtol=0, atol=1e-6)
        np.testing.assert_allclose(alone[1][0], heat[row], rtol=0, atol=1e-5)


def test_explain_files_agrees_with_predict_files_and_keeps_bad_files_in_their_place(
    run: LoadedRun, photos: Path, tmp_path: Path
):
    files = sorted(photos.iterdir())[:9]
    mixed = [tmp_path / "gone.png", *files[:5], tmp_path / "lost.jpg", *files[5:]]
    found = list(explain_files(run, mixed, batch_size=3))
    predicted = list(predict_files(run, mixed))
    assert [row.path for row in found] == [row.path for row in predicted]
    assert [type(found[row]) for row in (0, 6)] == [BadFile, BadFile]
    for row, truth in zip(found, predicted, strict=True):
        if isinstance(row, Explanation):
            assert row.label == row.explained == truth.label
            assert row.confidence == row.explained_output
            np.testing.assert_allclose(row.outputs, truth.outputs, atol=1e-6)
            assert row.heat.shape == (8, 8)
            assert row.pixels.shape == (32, 32, 3)
            assert [share for _, share in row.top(2)] == sorted(row.outputs)[:-3:-1]


def test_explain_files_explains_the_class_that_is_asked_for(run: LoadedRun, photos: Path):
    files = sorted(photos.iterdir())[:6]
    likeliest = list(explain_files(run, files))
    named = list(explain_files(run, files, class_name="path"))
    assert [row.explained for row in named] == ["path"] * 6
    assert [row.label for row in named] == [row.label for row in likeliest]
    column = run.class_names.index("path")
    for row, first in zip(named, likeliest, strict=True):
        assert row.explained_output == pytest.approx(float(first.outputs[column]))
        assert np.array_equal(row.heat, first.heat) == (first.label == "path")


def test_explain_files_refuses_a_class_that_the_run_does_not_have(run: LoadedRun):
    with pytest.raises(DataError, match="has no output 'tempel'") as failure:
        explain_files(run, [], class_name="tempel")
    assert "did you mean 'temple'?" in str(failure.value)


def test_explain_files_takes_only_a_little_ahead_of_an_endless_list(run: LoadedRun, photos: Path):
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        for file in itertools.cycle(sorted(photos.iterdir())):
            taken += 1
            yield file

    explanations = explain_files(run, endless(), batch_size=4)
    assert len(list(itertools.islice(explanations, 30))) == 30
    assert taken < 100
    explanations.close()


@pytest.mark.parametrize("variant", ["as trained", "frozen"])
def test_served_explanations_equal_the_library_s(
    variant, run: LoadedRun, photos: Path, tmp_path: Path
):
    files = sorted(photos.iterdir())[:8]
    network = (
        as_trained(run.model) if variant == "as trained" else frozen(run.model, precision="float32")
    )
    contract = Contract.of(run.spec, run.task)
    export_saved_model(network, tmp_path / "1", contract)
    serve = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_explain"]
    encoded = tf.constant([load_encoded(file, max_megapixels=1) for file in files])
    for name, index in ((None, HIGHEST), ("temple", 0)):
        served = serve(image_bytes=encoded, class_index=tf.fill([len(files)], index))
        own = list(explain_files(run, files, class_name=name))
        heat = np.stack([row.heat for row in own])
        np.testing.assert_allclose(served["heat_map"], heat, rtol=0, atol=1e-5)
        probabilities = np.stack([row.outputs for row in own])
        np.testing.assert_allclose(served["probabilities"], probabilities, rtol=0, atol=1e-6)
        for png, row in zip(served["square_bytes"], own, strict=True):
            np.testing.assert_array_equal(tf.io.decode_png(png), row.pixels)
