"""Trunks for other channels give the features that the original gives of a grey image."""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
from small_backbone import SMALL, save_small

from keras_transfer.backbones.channels import adapted_kernel, carry_over
from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.backbones.record import Trunk
from keras_transfer.backbones.registry import BACKBONES, get_backbone
from keras_transfer.backbones.scaling import MODES, describe_scaling
from keras_transfer.backbones.trunk import build_trunk
from keras_transfer.errors import SpecError
from keras_transfer.storage.model_files import OWN_WEIGHTS

DRAW = np.random.default_rng(0)
SIZE = 32
GREY = DRAW.integers(0, 256, (2, SIZE, SIZE, 1)).astype("float32")
IN_RGB = np.repeat(GREY, 3, axis=-1)
RGB = np.eye(3)
CUTS = {
    "small": "",
    "mobilenet_0.25": "stem",
    "efficientnet_lite0": "stem",
    "efficientnet_v2_s": "stem",  # It has a layer that scales between `Preprocess` and the kernel.
    "convnext_tiny": "stem",  # Its first convolution is in a Sequential.
}


def mean_shares(channels: int) -> np.ndarray:
    return np.full((channels, 3), 1 / 3)


def rgb_shares(channels: int) -> np.ndarray:
    return np.concatenate([RGB, mean_shares(channels - 3)])


@pytest.mark.parametrize("mode", [mode for mode, row in MODES.items() if not row.is_grey])
@pytest.mark.parametrize(
    "shares", [mean_shares(1), mean_shares(2), mean_shares(7), rgb_shares(4), rgb_shares(7)]
)
def test_the_kernel_gives_the_same_on_equal_channels_also_at_the_border(mode, shares):
    kernel = DRAW.normal(size=(3, 3, 3, 5))
    preprocess = Preprocess(mode, dtype="float64")
    adapted = adapted_kernel(kernel, mode, shares)
    pixels = np.repeat(GREY, len(shares), axis=-1)
    expected, found = (
        keras.ops.conv(preprocess(images.astype("float64")), weights, padding="same")
        for images, weights in ((IN_RGB, kernel), (pixels, adapted))
    )
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("mode", ["tf", "caffe"])
def test_rgb_weights_are_those_of_the_colours(mode):
    kernel = DRAW.normal(size=(1, 1, 3, 2))
    adapted = adapted_kernel(kernel, mode, rgb_shares(4))
    in_order = kernel[:, :, ::-1] if mode == "caffe" else kernel
    np.testing.assert_allclose(adapted[:, :, :3], 0.75 * in_order)
    np.testing.assert_allclose(adapted[:, :, 3], 0.75 * kernel.mean(axis=2))


def trunk_of(name: str, channels: int, **given: str) -> tuple[Trunk, keras.Model]:
    """A trunk, and the network from its images to its features."""
    keras.utils.set_random_seed(channels)
    inputs = keras.Input((SIZE, SIZE, channels))
    trunk = build_trunk(get_backbone(name), inputs, **{"weights": "none", **given})
    return trunk, keras.Model(inputs, trunk.output)


def assert_same(network: keras.Model, original: keras.Model) -> None:
    """Whether features of a grey image are the same, in its channels and in RGB."""
    expected = np.asarray(original(IN_RGB))
    found = np.asarray(network(np.repeat(GREY, network.input_shape[-1], axis=-1)))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", CUTS)
def test_adapted_trunks_give_the_features_of_the_grey_image(name):
    original, whole = trunk_of(name, 3, last_stage=CUTS[name])
    trunk, network = trunk_of(name, 5, last_stage=CUTS[name])
    carry_over(original, trunk, channels=5, weighting="rgb")
    assert_same(network, whole)


@pytest.mark.parametrize(
    ("name", "channels", "weighting"),
    [("resnet50", 4, "rgb"), ("resnet50", 1, "mean"), ("vgg16", 4, "mean")],
)
def test_pretrained_weights_are_adapted(name, channels, weighting):
    chosen = {"weights": "embedded", "last_stage": "stage3"}
    _, original = trunk_of(name, 3, **chosen)
    trunk, network = trunk_of(name, channels, **chosen, channel_weights=weighting)
    assert_same(network, original)
    assert ("only the mean" in trunk.backbone.notes[-1]) == (name == "vgg16")


def test_without_weights_nothing_is_adapted():
    _, network = trunk_of("small", 4)
    kernel = network.get_layer("small1_conv").get_weights()[0]
    assert len(np.unique(kernel)) == kernel.size


def test_a_combination_adapts_all_of_its_parts(monkeypatch):
    monkeypatch.setitem(BACKBONES, "other", dataclasses.replace(SMALL, name="other"))
    trunk, _ = trunk_of("small+other", 2)
    assert trunk.output.shape[-1] == 32


@pytest.mark.parametrize("channels", [1, 4])
def test_a_run_gives_its_weights_to_one_with_the_same_channels(channels, tmp_path):
    _, network = trunk_of("small", channels)
    network.save(tmp_path / "model.keras")
    _, copy = trunk_of("small", channels, weights=str(tmp_path / "model.keras"))
    for mine, theirs in zip(copy.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_run_on_colours_gives_its_weights_to_one_on_grey(tmp_path):
    _, network = trunk_of("small", 3)
    network.save(tmp_path / "model.keras")
    _, grey = trunk_of("small", 1, weights=str(tmp_path / "model.keras"))
    assert_same(grey, network)


def own_network(file: Path, channels: int, *layers: keras.layers.Layer) -> str:
    image = keras.Input((SIZE, SIZE, channels))
    x = image
    for layer in (*layers, keras.layers.Conv2D(4, 3, name="kernel")):
        x = layer(x)
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(image, keras.layers.Dense(2)(pooled)).save(file)
    return str(file)


def test_own_networks_keep_their_channels(tmp_path):
    name = own_network(tmp_path / "own.keras", 5, keras.layers.Rescaling(1 / 255))
    assert get_backbone(name).channels == 5
    _, network = trunk_of(name, 5, weights=OWN_WEIGHTS)
    theirs = keras.models.load_model(name).get_layer("kernel").get_weights()
    np.testing.assert_array_equal(network.get_layer("kernel").get_weights()[0], theirs[0])
    with pytest.raises(SpecError, match=r"data\.channels=5"):
        trunk_of(name, 4, weights=OWN_WEIGHTS)
    plain = own_network(tmp_path / "plain.keras", 5)
    with pytest.raises(SpecError, match="tf, lite, none"):
        get_backbone(plain, preprocess="caffe")


def test_a_model_with_a_plane_of_ones_is_a_backbone_again(tmp_path):
    inputs = keras.Input((SIZE, SIZE, 4))
    row = get_backbone("small", preprocess="caffe")
    network = keras.Model(inputs, build_trunk(row, inputs, weights="none").output)
    assert network.get_layer("small1_conv").kernel.shape[2] == 5
    network.save(tmp_path / "model.keras")
    _, again = trunk_of(str(tmp_path / "model.keras"), 4, weights=OWN_WEIGHTS)
    pixels = DRAW.uniform(0, 255, (2, SIZE, SIZE, 4)).astype("float32")
    np.testing.assert_allclose(np.asarray(again(pixels)), np.asarray(network(pixels)), rtol=1e-5)


def test_own_networks_in_colours_are_adapted(tmp_path):
    name = str(save_small(tmp_path / "small.keras"))
    _, original = trunk_of(name, 3, weights=OWN_WEIGHTS)
    _, network = trunk_of(name, 2, weights=OWN_WEIGHTS)
    assert_same(network, original)


@pytest.mark.parametrize(
    "first", [keras.layers.BatchNormalization(), keras.layers.DepthwiseConv2D(3)]
)
def test_networks_whose_other_layers_depend_on_the_channels_are_refused(first, tmp_path):
    name = own_network(tmp_path / "own.keras", 3, keras.layers.Rescaling(1 / 255), first)
    with pytest.raises(SpecError, match=type(first).__name__):
        trunk_of(name, 1, weights=OWN_WEIGHTS)


def test_a_normalization_of_colours_is_refused_for_more_channels(tmp_path):
    scaling = keras.layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 1.0, 4.0])
    name = own_network(tmp_path / "own.keras", 3, scaling)
    for channels in (1, 4):
        with pytest.raises(SpecError, match=rf"scales 3 channels, and gets {channels}"):
            trunk_of(name, channels, weights=OWN_WEIGHTS)


def test_the_card_says_how_other_channels_are_scaled():
    assert describe_scaling("caffe", 3) == MODES["caffe"].text
    assert describe_scaling("caffe", 2).endswith("(x / 1 − 114.8) / 1")
    assert describe_scaling("tf", 2) == MODES["tf"].text
