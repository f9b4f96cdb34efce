"""Weights from files and from Keras's cache, and the errors of those that do not fit."""

import shutil
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_transfer.backbones.archives import save_embedded
from keras_transfer.backbones.imagenet import find_weights
from keras_transfer.backbones.preprocess import TORCH_MEANS_RGB, TORCH_STDS_RGB
from keras_transfer.backbones.registry import get_backbone
from keras_transfer.backbones.trunk import build_trunk
from keras_transfer.errors import WeightsError

TINY = "mobilenet_0.25"
NO_TOP = "mobilenet_2_5_224_tf_no_top.h5"


def trunk_model(weights: str, *, name: str = TINY, last_stage: str = "", side: int = 32):
    """The trunk as a model of its own."""
    inputs = keras.Input((side, side, 3))
    trunk = build_trunk(get_backbone(name), inputs, last_stage=last_stage, weights=weights)
    return keras.Model(inputs, trunk.output)


def random_pixels(side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, side, side, 3)).astype("float32")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keras's cache in an empty folder, on a machine that reaches nothing."""
    for scheme in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def test_imagenet_weights_in_the_cache_are_those_keras_loads(offline, shared_weights):
    offline.mkdir(parents=True)
    shutil.copy(shared_weights / NO_TOP, offline)
    ours = trunk_model("imagenet", side=64)
    theirs = keras.applications.MobileNet(
        alpha=0.25, include_top=False, input_shape=(64, 64, 3), weights=str(offline / NO_TOP)
    )
    pixels = random_pixels(64)
    expected = np.asarray(theirs(keras.applications.mobilenet.preprocess_input(pixels.copy())))
    assert expected.std() > 0.1
    np.testing.assert_allclose(np.asarray(ours(pixels)), expected, atol=1e-5)


def test_imagenet_weights_fill_a_cut_trunk(offline, shared_weights):
    offline.mkdir(parents=True)
    shutil.copy(shared_weights / NO_TOP, offline)
    whole, cut = trunk_model("imagenet"), trunk_model("imagenet", last_stage="stage3")
    middle = keras.Model(whole.inputs[0], whole.get_layer("conv_pw_5_relu").output)
    np.testing.assert_array_equal(
        np.asarray(cut(random_pixels())), np.asarray(middle(random_pixels()))
    )


def test_imagenet_weights_that_cannot_be_fetched_say_what_to_do(offline, tmp_path):
    inputs = keras.Input((32, 32, 3))
    small = build_trunk(get_backbone(TINY), inputs, last_stage="stage1", weights="none")
    save_embedded(small, tmp_path, {})
    began = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        find_weights(get_backbone(TINY), embedded=tmp_path)
    assert time.monotonic() - began < 10
    message = str(caught.value)
    assert str(offline / NO_TOP) in message
    assert "storage.googleapis.com" in message
    assert "model.weights=embedded model.last_stage=stage1" in message
    assert not any(offline.glob("*"))


def test_imagenet_weights_of_a_backbone_without_embedded_ones_name_others(offline, tmp_path):
    inputs = keras.Input((32, 32, 3))
    small = build_trunk(get_backbone(TINY), inputs, last_stage="stage1", weights="none")
    save_embedded(small, tmp_path, {})
    with pytest.raises(WeightsError, match=r"a trunk that has them: mobilenet_0\.25_stage1"):
        find_weights(get_backbone("nasnet_large"), embedded=tmp_path)


def test_imagenet_weights_missing_are_noticed_before_a_trunk_is_built(offline):
    with pytest.raises(WeightsError, match="nasnet_large_no_top"):
        trunk_model("imagenet", name="nasnet_large")


def test_file_in_the_cache_with_another_digest_is_refused_and_kept(offline):
    row = get_backbone("resnet50")
    offline.mkdir(parents=True)
    file = offline / row.imagenet.file
    file.write_bytes(b"weights of my own")
    with pytest.raises(WeightsError, match="is not the file that Keras published") as caught:
        find_weights(row)
    assert row.imagenet.digest in caught.value.expected
    assert "set model.weights to their path" in caught.value.fix
    assert file.read_bytes() == b"weights of my own"


@pytest.mark.parametrize("damage", ["half", "text"])
def test_damaged_file_without_a_known_digest_is_refused_and_kept(offline, shared_weights, damage):
    offline.mkdir(parents=True)
    content = (shared_weights / NO_TOP).read_bytes()
    damaged = content[: len(content) // 2] if damage == "half" else b"<html>not found</html>"
    (offline / NO_TOP).write_bytes(damaged)
    with pytest.raises(WeightsError, match="damaged"):
        trunk_model("imagenet")
    assert (offline / NO_TOP).read_bytes() == damaged


def test_file_of_a_network_with_its_top_is_refused(shared_weights):
    with pytest.raises(WeightsError, match="include_top=False") as caught:
        trunk_model(str(shared_weights / "mobilenet_2_5_224_tf.h5"))
    assert "2 only in the file" in caught.value.received


def test_file_in_the_newer_layout_gives_keras_outputs(tmp_path):
    theirs = keras.applications.MobileNet(
        alpha=0.25, include_top=False, input_shape=(32, 32, 3), weights=None
    )
    theirs.save_weights(tmp_path / "own.weights.h5")
    ours = trunk_model(str(tmp_path / "own.weights.h5"))
    pixels = random_pixels()
    expected = np.asarray(theirs(keras.applications.mobilenet.preprocess_input(pixels.copy())))
    np.testing.assert_allclose(np.asarray(ours(pixels)), expected, atol=1e-5)


def test_file_of_another_width_tells_the_shapes(tmp_path):
    other = keras.applications.MobileNet(
        alpha=0.5, include_top=False, input_shape=(32, 32, 3), weights=None
    )
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(
        WeightsError, match=r"does not hold the weights of mobilenet_0\.25"
    ) as caught:
        trunk_model(str(tmp_path / "other.weights.h5"))
    assert "arrays of 218,544 numbers" in caught.value.expected
    assert "(3, 3, 3, 16)" in caught.value.received
    assert "(3, 3, 3, 8)" in caught.value.received


def efficientnet_file(tmp_path: Path, mean, variance) -> tuple[keras.Model, str]:
    """Keras's network with the given input scaling, and a file of it."""
    network = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(32, 32, 3)
    )
    scaling = next(x for x in network.layers if isinstance(x, keras.layers.Normalization))
    scaling.set_weights([np.array(mean), np.array(variance), np.array(0)])
    network.save_weights(tmp_path / "efficientnet.weights.h5")
    scaling.set_weights([np.array(mean), np.square(TORCH_STDS_RGB), np.array(0)])
    scaling.finalize_state()
    return network, str(tmp_path / "efficientnet.weights.h5")


def test_efficientnet_file_with_deviations_for_variances_is_read_as_keras_means_it(tmp_path):
    """ImageNet's files have them so; Keras divides by their root twice."""
    network, file = efficientnet_file(tmp_path, TORCH_MEANS_RGB, TORCH_STDS_RGB)
    ours = trunk_model(file, name="efficientnet_b0", last_stage="stage1")
    theirs = keras.Model(network.inputs[0], network.get_layer("block1a_project_bn").output)
    pixels = random_pixels()
    expected = np.asarray(theirs(pixels))
    np.testing.assert_allclose(
        np.asarray(ours(pixels)), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


def test_efficientnet_file_with_another_scaling_is_refused(tmp_path):
    _, file = efficientnet_file(tmp_path, np.zeros(3), np.ones(3))
    with pytest.raises(WeightsError, match="scaled in another way"):
        trunk_model(file, name="efficientnet_b0", last_stage="stage1")


def test_model_of_an_earlier_run_fills_trunks_up_to_its_own_stage(tmp_path):
    before = trunk_model("none", last_stage="stage3")
    logits = keras.layers.Dense(2)(keras.layers.Flatten()(before.output))
    keras.Model(before.inputs[0], logits).save(tmp_path / "model.keras")
    after = trunk_model(str(tmp_path / "model.keras"), last_stage="stage3")
    np.testing.assert_array_equal(
        np.asarray(after(random_pixels())), np.asarray(before(random_pixels()))
    )
    trunk_model(str(tmp_path / "model.keras"), last_stage="stage1")
    with pytest.raises(WeightsError, match=r"does not hold mobilenet_0\.25 through stage4"):
        trunk_model(str(tmp_path / "model.keras"), last_stage="stage4")


def test_model_with_numbered_layers_is_matched_by_order(tmp_path):
    before = trunk_model("none", name="xception", side=71)
    before.save(tmp_path / "model.keras")
    after = trunk_model(str(tmp_path / "model.keras"), name="xception", side=71)
    assert [layer.name for layer in after.layers] != [layer.name for layer in before.layers]
    np.testing.assert_array_equal(
        np.asarray(after(random_pixels(71))), np.asarray(before(random_pixels(71)))
    )


def test_model_that_scales_pixels_in_another_way_is_refused(tmp_path):
    inputs = keras.Input((32, 32, 3))
    keras.applications.MobileNet(
        alpha=0.25, include_top=False, weights=None, input_tensor=inputs
    ).save(tmp_path / "model.keras")
    with pytest.raises(WeightsError, match="pixels scaled the 'tf' way"):
        trunk_model(str(tmp_path / "model.keras"))


def test_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"no model")
    with pytest.raises(WeightsError, match="cannot be read as a Keras model"):
        trunk_model(str(tmp_path / "model.keras"))


@pytest.mark.parametrize(
    ("weights", "advice"), [("imagnet", "did you mean imagenet"), ("gone.h5", "correct the path")]
)
def test_weights_that_are_neither_word_nor_file_are_refused(weights, advice):
    with pytest.raises(WeightsError, match=advice) as caught:
        trunk_model(weights)
    assert "no such file" in caught.value.received


def test_weights_in_a_file_of_another_kind_are_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(WeightsError, match="another kind of file"):
        trunk_model(str(tmp_path / "weights.pth"))
