"""Folded networks say the same as the networks they were made of.

In float64 folding is exact to rounding, which proves the algebra; in float32 both the network and
its fold round, each to within about 1e-6 of that truth in a deep one.
"""

import random
import zipfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from small_models import make_classifier

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.backbones.trunk import build_trunk
from keras_transfer.models.folding import fold

needs_float64 = pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="JAX computes in float32; what folding computes is the same on both backends",
)


class Part(NamedTuple):
    """How much of a network is folded here, and what must be left of it."""

    num_norms: int
    num_left: int
    last_stage: str = ""
    last_layer: str = ""


FAMILIES = {
    "resnet50": Part(11, 0, "stage2"),
    "resnet50_v2": Part(6, 2, "stage2"),
    "densenet121": Part(13, 6, "stage2"),
    "mobilenet_0.25": Part(11, 0, "stage3"),
    "mobilenet_v3_small": Part(9, 0, "stage3"),
    "efficientnet_b0": Part(9, 0, "stage2"),
    "efficientnet_lite0": Part(9, 0, "stage2"),
    "convnext_tiny": Part(0, 0, "stage2"),
    "xception": Part(8, 0, "stage3"),
    "inception_v3": Part(26, 0, "stage3"),
    "nasnet_mobile": Part(24, 1, last_layer="reduction_concat_stem_2"),
}


def shake(model: keras.Model) -> None:
    """Give every bias and BatchNormalization values of its own; fresh ones do next to nothing."""
    numbers = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("moving_variance", "gamma"):
            variable.assign(numbers.uniform(0.5, 2, variable.shape))
        elif variable.name in ("moving_mean", "beta", "bias"):
            variable.assign(numbers.normal(0, 0.3, variable.shape))


def random_pixels(model: keras.Model) -> np.ndarray:
    shape = (2, *model.input.shape[1:])
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


def in_float64(model: keras.Model) -> keras.Model:
    """The same network, not folded, in float64 behind its Preprocess."""

    def copy(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer) and not isinstance(layer, Preprocess):
            config["dtype"] = "float64"
        return type(layer).from_config(config)

    exact = keras.models.clone_model(model, clone_function=copy, recursive=True)
    exact.set_weights(model.get_weights())
    return exact


def difference(received, expected) -> float:
    """The largest difference, relative to the largest value."""
    received, expected = np.asarray(received), np.asarray(expected)
    return np.abs(received - expected).max() / np.abs(expected).max()


def norm_names(model: keras.Model) -> set[str]:
    return {x.name for x in model.layers if isinstance(x, keras.layers.BatchNormalization)}


def norms_left(model: keras.Model, folded: keras.Model) -> set[str]:
    """Names of those that are still a step of their own, a product and a sum."""
    assert not norm_names(folded)
    return norm_names(model) & {layer.name for layer in folded.layers}


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    """Part of a network of each family on its smallest images, and what to expect of it."""
    row, part = BACKBONES[request.param], FAMILIES[request.param]
    keras.utils.set_random_seed(0)
    inputs = keras.Input((row.minimal_size, row.minimal_size, 3), name="image")
    model = keras.Model(
        inputs, build_trunk(row, inputs, last_stage=part.last_stage, weights="none").output
    )
    if part.last_layer:
        model = keras.Model(inputs, model.get_layer(part.last_layer).output)
    shake(model)
    return model, part


@pytest.mark.slow
@needs_float64
def test_fold_says_the_same_with_few_norms_left(network):
    model, part = network
    pixels = random_pixels(model)
    truth = np.asarray(in_float64(model)(pixels))
    assert difference(fold(model, dtype="float64")(pixels), truth) < 1e-12
    folded = fold(model)
    # Float32's own rounding: networks without any norm to fold are off by as much.
    assert difference(folded(pixels), truth) < 3e-6
    assert len(norm_names(model)) == part.num_norms
    assert len(norms_left(model, folded)) == part.num_left


def test_fold_in_half_precision_says_nearly_the_same(network):
    model, _ = network
    pixels = random_pixels(model)
    half = fold(model, dtype="bfloat16")(pixels)
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"
    received = np.asarray(keras.ops.cast(half, "float32")).ravel()
    expected = np.asarray(model(pixels)).ravel()
    cosine = received @ expected / np.linalg.norm(received) / np.linalg.norm(expected)
    assert cosine > 0.999


def toy_network(*, dtype: str = "float32") -> keras.Model:
    """Everything that can be folded, with and without what it may lack, and what cannot."""
    layers = keras.layers
    x = inputs = keras.Input((9, 9, 3), name="image", dtype="uint8")
    x = Preprocess("torch", name="preprocess")(x)
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="biased")(x)
    x = layers.BatchNormalization(name="after_biased")(x)
    x = layers.Conv2D(8, 3, groups=2, use_bias=False, name="grouped")(x)
    x = layers.BatchNormalization(scale=False, epsilon=0.1, name="after_grouped")(x)
    x = layers.DepthwiseConv2D(2, depth_multiplier=2, name="depthwise")(x)
    x = layers.BatchNormalization(center=False, axis=3, name="after_depthwise")(x)
    x = layers.SeparableConv2D(6, 2, depth_multiplier=2, name="separable")(x)
    x = layers.BatchNormalization(name="after_separable")(x)
    x = layers.Conv2D(4, 1, activation="relu", name="bent")(x)
    x = layers.BatchNormalization(name="after_bent")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(5, name="dense")(x)
    x = layers.BatchNormalization(name="after_dense")(x)
    model = keras.Model(inputs, x)
    shake(model)
    return model


@needs_float64
def test_fold_reaches_every_linear_layer_but_not_past_an_activation():
    model = toy_network()
    folded = fold(model, dtype="float64")
    assert norms_left(model, folded) == {"after_bent"}
    assert difference(folded(random_pixels(model)), in_float64(model)(random_pixels(model))) < 1e-13


def test_fold_takes_the_same_input_and_has_weights_of_its_precision():
    folded = fold(toy_network(), dtype="bfloat16")
    assert (folded.input.name, folded.input.dtype) == ("image", "uint8")
    assert folded.input.shape == (None, 9, 9, 3)
    assert folded.get_layer("preprocess").compute_dtype == "float32"
    assert {variable.dtype for variable in folded.variables} == {"bfloat16"}
    assert not folded.trainable_variables


def test_fold_keeps_the_outputs_in_order():
    classifier = make_classifier()
    shake(classifier.model)
    tensors = [stage[-1].output for stage in classifier.trunk.stages.values()]
    model = keras.Model(classifier.model.input, tensors[::-1])
    pixels = random_pixels(model)
    folded = fold(model)
    assert [x.shape for x in folded.outputs] == [x.shape for x in model.outputs]
    for received, expected in zip(folded(pixels), model(pixels), strict=True):
        assert difference(received, expected) < 1e-6


def test_fold_keeps_a_convolution_whose_own_output_is_wanted():
    toy = toy_network()
    tensors = [toy.get_layer(name).output for name in ("grouped", "after_grouped", "dense")]
    model = keras.Model(toy.input, tensors)
    folded, pixels = fold(model), random_pixels(model)
    assert norms_left(model, folded) == {"after_grouped", "after_bent"}
    for received, expected in zip(folded(pixels), model(pixels), strict=True):
        assert difference(received, expected) < 1e-6


def test_fold_leaves_the_original_and_the_random_state_alone(tmp_path):
    def saved_graph(name: str) -> bytes:
        model.save(tmp_path / name)
        with zipfile.ZipFile(Path(tmp_path, name)) as file:
            return file.read("config.json")

    model = toy_network()
    model.get_layer("grouped").trainable = False
    graph, flags = saved_graph("before.keras"), [layer.trainable for layer in model.layers]
    before = [np.array(variable) for variable in model.variables]
    random.seed(0)
    fold(model, dtype="bfloat16")
    assert random.random() == random.Random(0).random()
    assert saved_graph("after.keras") == graph
    assert [layer.trainable for layer in model.layers] == flags
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(np.array(new), old)


def test_fold_leaves_out_what_only_draws_random_numbers():
    toy = toy_network()
    noisy = keras.layers.GaussianNoise(0.9)(keras.layers.Dropout(0.5)(toy.output))
    model = keras.Model(toy.input, noisy)
    folded = fold(model)
    assert not [v for v in folded.variables if "seed" in v.path]
    pixels = random_pixels(model)
    assert difference(folded(pixels), np.asarray(model(pixels))) < 1e-6
    assert difference(folded(pixels, training=True), np.asarray(model(pixels))) < 1e-6
