"""Weights from files of every kind, and the errors of those that do not fit."""

import keras
import numpy as np
import pytest
from small_backbone import build_small

from keras_transfer.backbones.registry import get_backbone
from keras_transfer.backbones.scaling import MODES
from keras_transfer.backbones.trunk import build_trunk
from keras_transfer.backbones.weights import load_network
from keras_transfer.errors import WeightsError

TINY = "mobilenet_0.25"


def trunk_model(
    weights: str, *, name: str = TINY, last_stage: str = "", side: int = 32, preprocess: str = ""
):
    """The trunk as a model of its own."""
    inputs = keras.Input((side, side, 3))
    backbone = get_backbone(name, preprocess=preprocess)
    trunk = build_trunk(backbone, inputs, last_stage=last_stage, weights=weights)
    return keras.Model(inputs, trunk.output)


def random_pixels(side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, side, side, 3)).astype("float32")


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


@pytest.fixture(scope="module")
def efficientnet() -> keras.Model:
    """Keras's network, which scales its own input."""
    return keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(32, 32, 3)
    )


def rescale(network: keras.Model, mean, variance) -> None:
    """Set the scaling of the network's input."""
    layer = next(x for x in network.layers if isinstance(x, keras.layers.Normalization))
    layer.set_weights([np.array(mean), np.array(variance), np.array(0)])
    layer.finalize_state()


def test_efficientnet_file_with_deviations_for_variances_is_meant_so(tmp_path, efficientnet):
    """ImageNet's files have them so, and Keras divides by their root once more."""
    rescale(efficientnet, MODES["torch"].means, MODES["torch"].deviations)
    efficientnet.save_weights(tmp_path / "own.weights.h5")
    file = str(tmp_path / "own.weights.h5")
    ours = trunk_model(file, name="efficientnet_b0", last_stage="stage1")
    rescale(efficientnet, MODES["torch"].means, np.square(MODES["torch"].deviations))
    end = efficientnet.get_layer("block1a_project_bn").output
    expected = np.asarray(keras.Model(efficientnet.inputs[0], end)(random_pixels()))
    np.testing.assert_allclose(
        np.asarray(ours(random_pixels())), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


def test_efficientnet_file_with_another_scaling_is_refused(tmp_path, efficientnet):
    rescale(efficientnet, np.zeros(3), np.ones(3))
    efficientnet.save_weights(tmp_path / "own.weights.h5")
    with pytest.raises(WeightsError, match="with another scaling"):
        load_network(
            efficientnet, tmp_path / "own.weights.h5", backbone=get_backbone("efficientnet_b0")
        )


def test_model_of_an_earlier_run_fills_trunks_up_to_its_own_stage(tmp_path):
    before = trunk_model("none", name="small", last_stage="stage2")
    logits = keras.layers.Dense(2)(keras.layers.Flatten()(before.output))
    keras.Model(before.inputs[0], logits).save(tmp_path / "model.keras")
    file = str(tmp_path / "model.keras")
    after = trunk_model(file, name="small", last_stage="stage2")
    np.testing.assert_array_equal(
        np.asarray(after(random_pixels())), np.asarray(before(random_pixels()))
    )
    trunk_model(file, name="small", last_stage="stage1")
    with pytest.raises(WeightsError, match="does not hold small through stage3"):
        trunk_model(file, name="small", last_stage="stage3")


def test_model_that_saw_colours_fills_a_trunk_that_sees_grey(tmp_path):
    before = trunk_model("none", name="small")
    before.save(tmp_path / "model.keras")
    after = trunk_model(str(tmp_path / "model.keras"), name="small", preprocess="grey")
    grey = np.repeat(random_pixels().mean(axis=-1, keepdims=True), 3, axis=-1)
    np.testing.assert_allclose(np.asarray(after(grey)), np.asarray(before(grey)), atol=1e-4)
    with pytest.raises(WeightsError, match="does not hold small"):
        trunk_model(str(tmp_path / "model.keras"), name="small", preprocess="grey_caffe")


def test_model_with_numbered_layers_is_matched_by_order(tmp_path):
    xception = {"name": "xception", "last_stage": "stage2", "side": 71}
    before = trunk_model("none", **xception)
    before.save(tmp_path / "model.keras")
    after = trunk_model(str(tmp_path / "model.keras"), **xception)
    assert [layer.name for layer in after.layers] != [layer.name for layer in before.layers]
    np.testing.assert_array_equal(
        np.asarray(after(random_pixels(71))), np.asarray(before(random_pixels(71)))
    )


def test_model_that_scales_pixels_in_another_way_is_refused(tmp_path):
    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, build_small(inputs)).save(tmp_path / "model.keras")
    with pytest.raises(WeightsError, match="preprocessing 'tf'"):
        trunk_model(str(tmp_path / "model.keras"), name="small")


def test_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"no model")
    with pytest.raises(WeightsError, match="cannot be read as a Keras model"):
        trunk_model(str(tmp_path / "model.keras"), name="small")


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
