"""`Preprocess` against the functions of keras.applications, in every dtype it may meet."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer.backbones.applications import Application
from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.backbones.registry import BACKBONES, get_backbone
from keras_transfer.backbones.scaling import MODES, Scaling
from keras_transfer.errors import SpecError
from keras_transfer.export.card import make_card
from keras_transfer.specs import RunSpec
from keras_transfer.tasks.single_label import SingleLabel

APPLICATIONS = {
    name: row for name, row in BACKBONES.items() if isinstance(row.builder, Application)
}


def random_pixels() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (3, 5, 5, 3)).astype("float32")


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_preprocess_equals_that_of_keras(mode):
    pixels = random_pixels()
    expected = keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode=mode)
    np.testing.assert_allclose(np.asarray(Preprocess(mode)(pixels)), expected, atol=1e-5)


@pytest.mark.parametrize("row", APPLICATIONS.values(), ids=APPLICATIONS)
def test_preprocess_of_a_row_equals_its_module(row):
    """Modules that pass pixels through scale them in the network: see the contract test."""
    module = sys.modules[getattr(keras.applications, row.builder.constructor).__module__]
    pixels = random_pixels()
    expected = module.preprocess_input(pixels.copy())
    if np.array_equal(expected, pixels):
        assert (
            "include_preprocessing" in dict(row.builder.arguments)
            or "Normalization" in row.leave_out
        )
    else:
        np.testing.assert_allclose(
            np.asarray(Preprocess(row.preprocessing)(pixels)), expected, atol=1e-5
        )


def test_mode_lite_is_nearly_that_of_tf():
    pixels = random_pixels()
    scaled = np.asarray(Preprocess("lite")(pixels))
    np.testing.assert_allclose(scaled * 128 + 127, pixels, rtol=0, atol=1e-4)
    np.testing.assert_allclose(scaled, np.asarray(Preprocess("tf")(pixels)), atol=0.01)


def test_mode_none_leaves_pixels_alone():
    pixels = random_pixels()
    np.testing.assert_array_equal(np.asarray(Preprocess("none")(pixels)), pixels)


@pytest.mark.parametrize("mode", MODES)
def test_preprocess_takes_bytes(mode):
    pixels = np.arange(75, dtype="uint8").reshape(1, 5, 5, 3)
    layer = Preprocess(mode)
    np.testing.assert_array_equal(
        np.asarray(layer(pixels)), np.asarray(layer(pixels.astype("float32")))
    )


@pytest.mark.parametrize("mode", MODES)
def test_preprocess_computes_in_its_compute_dtype(mode):
    layer = Preprocess(mode, dtype="mixed_bfloat16")
    result = layer(random_pixels())
    assert keras.backend.standardize_dtype(result.dtype) == "bfloat16"


@pytest.mark.parametrize("mode", MODES)
def test_preprocess_when_saved_comes_back(mode, tmp_path):
    inputs = keras.Input((5, 5, 3))
    model = keras.Model(inputs, Preprocess(mode, name="preprocess")(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("preprocess").mode == mode
    np.testing.assert_array_equal(
        np.asarray(loaded(random_pixels())), np.asarray(model(random_pixels()))
    )


@pytest.mark.parametrize("mode", MODES)
def test_preprocess_captures_no_tensors(mode):
    """A captured tensor would become a second input of an ONNX file."""
    layer = Preprocess(mode)
    traced = tf.function(layer).get_concrete_function(tf.TensorSpec((None, 5, 5, 3), tf.float32))
    assert traced.captured_inputs == []
    assert layer.variables == []


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.startswith("grey_")])
def test_grey_modes_scale_the_grey_level_like_the_mode_they_are_named_after(mode):
    pixels = random_pixels()
    grey = np.repeat(pixels @ np.float32([[0.299], [0.587], [0.114]]), 3, axis=-1)
    expected = Preprocess(mode.removeprefix("grey_"))(grey)
    np.testing.assert_allclose(Preprocess(mode)(pixels), expected, atol=1e-4)
    np.testing.assert_allclose(Preprocess(mode)(grey), expected, atol=1e-4)


def test_grey_is_the_backbone_s_own_mode_in_grey():
    assert get_backbone("resnet50", preprocess="grey").preprocessing == "grey_caffe"
    assert get_backbone("efficientnet_lite0", preprocess="grey").preprocessing == "grey_lite"
    with pytest.raises(SpecError, match="cannot be set for a combination"):
        get_backbone("resnet50+vgg16", preprocess="grey")


def test_preprocess_with_unknown_mode_is_refused():
    with pytest.raises(SpecError, match="caffe, tf, torch, lite, none"):
        Preprocess("bgr")


def test_a_new_mode_is_one_row(monkeypatch):
    row = Scaling("halved", divisor=2.0, means=(1.0, 2.0, 3.0), deviations=(4.0, 1.0, 2.0))
    monkeypatch.setitem(MODES, "new", row)
    pixels = random_pixels()
    expected = (pixels / 2 - np.array(row.means)) / np.array(row.deviations)
    np.testing.assert_allclose(np.asarray(Preprocess("new")(pixels)), expected, rtol=1e-5)
    assert get_backbone("resnet50", preprocess="new").preprocessing == "new"
    model = keras.Sequential([keras.Input((8, 8, 3)), Preprocess("new")])
    evaluation = SingleLabel(("a", "b")).evaluate(np.array([0, 1]), np.eye(2, dtype=np.float32))
    counts = {"train": 1, "val": 1, "test": 2}
    card = make_card(RunSpec(), model, SingleLabel(("a", "b")), evaluation, counts)
    assert card.preprocessing == "halved"
