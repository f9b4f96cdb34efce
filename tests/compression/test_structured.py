"""Channels are removed wherever they occur, and what is left is a smaller network."""

import keras
import numpy as np
import pytest
from keras import layers
from small_networks import make_network, make_sample

from keras_transfer.compression.channels import blocks, find_channels, kept_channels, without
from keras_transfer.compression.network import Network
from keras_transfer.compression.structured import (
    _without,
    num_removed,
    prune_channels,
    prune_features,
)
from keras_transfer.models.folding import fold


def outputs(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return model.predict(images, verbose=0)


def lost(model: keras.Model, smaller: keras.Model, images: np.ndarray) -> float:
    """Share of the outputs' variance that the smaller network does not have."""
    expected = outputs(model, images)
    errors = np.square(outputs(smaller, images) - expected).sum()
    return float(errors / np.square(expected - expected.mean(axis=(0, 1, 2))).sum())


def test_nothing_removed_changes_nothing():
    model = make_network()
    sample = make_sample(model)
    before = [weight.copy() for weight in model.get_weights()]
    same = prune_channels(model, sample, 0.0)
    np.testing.assert_allclose(
        outputs(same, sample.images), outputs(model, sample.images), atol=2e-5
    )
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_the_smaller_network_equals_the_one_with_zeros():
    """Removing channels is the same as zeros in all weights that read them."""
    model = make_network()
    sample = make_sample(model)
    network = Network.copied(fold(model))
    channels = find_channels(network)
    channels.fix(channels.of[id(network.model.outputs[0])])
    found = list(blocks(network, channels))
    # The stem with the sum, the wide layers with their gate; the feature map is fixed.
    assert sorted(map(len, found)) == [16, 32]
    removed = {int(root) for block in found for root in block[::2]}
    masks = kept_channels(network, channels, removed)
    smaller = without(network, masks)
    zeroed = Network.copied(network.model)
    for step in zeroed.steps:
        layer = step.operation
        if isinstance(layer, layers.Conv2D) and not isinstance(layer, layers.DepthwiseConv2D):
            kernel, bias = layer.get_weights()
            kernel[..., ~masks[layer.name][0], :] = 0
            layer.set_weights([kernel, bias])
    np.testing.assert_allclose(
        outputs(smaller.model, sample.images), outputs(zeroed.model, sample.images), atol=1e-5
    )
    assert smaller.model.get_layer("depthwise").get_weights()[0].shape == (3, 3, 16, 1)
    assert smaller.model.get_layer("gate").get_weights()[0].shape == (1, 1, 16, 16)
    assert smaller.model.count_params() < 0.6 * network.model.count_params()


def test_channels_that_others_repeat_are_made_up_for():
    """Half of the channels in the middle are copies: half can go without a loss."""
    model = make_network()
    wide = model.get_layer("wide")
    kernel, bias = wide.get_weights()
    kernel[..., 16:], bias[16:] = kernel[..., :16], bias[:16]
    wide.set_weights([kernel, bias])
    for name, axis in (("depthwise", 2), ("gate", 3)):
        weights = model.get_layer(name).get_weights()
        first, second = (
            np.moveaxis(weights[0], axis, 0)[half] for half in (slice(16), slice(16, 32))
        )
        second[...] = first
        if name == "gate":
            weights[1][16:] = weights[1][:16]
        model.get_layer(name).set_weights(weights)
    norm = model.get_layer("depthwise_norm")
    norm.set_weights([np.concatenate([weight[:16]] * 2) for weight in norm.get_weights()])
    sample = make_sample(model, num_images=24)
    network = Network.copied(fold(model))
    channels = find_channels(network)
    block = next(block for block in blocks(network, channels) if len(block) == 32)
    smaller = _without(network, channels, set(map(int, block[16:])), sample.images)
    assert smaller.count_params() < 0.9 * model.count_params()
    assert lost(model, smaller, make_sample(model, 4).images) < 1e-3


def test_the_rest_makes_up_for_what_is_removed():
    model = make_network()
    sample = make_sample(model, num_images=48)
    smaller = prune_channels(model, sample, 0.5)
    assert smaller.output.shape == model.output.shape
    fitted = lost(model, smaller, sample.images)
    assert fitted < 0.5
    network = Network.copied(fold(model))
    channels = find_channels(network)
    channels.fix(channels.of[id(network.model.outputs[0])])
    removed = {int(root) for block in blocks(network, channels) for root in block[::2]}
    bare = without(network, kept_channels(network, channels, removed)).model
    assert fitted < 0.7 * lost(model, bare, sample.images)


@pytest.mark.parametrize(
    ("size", "amount", "removed"), [(64, 0.5, 32), (64, 0.3, 16), (16, 0.9, 8)]
)
def test_blocks_keep_multiples_of_eight(size, amount, removed):
    assert num_removed(size, amount) == removed


def test_features_that_the_head_uses_least_go():
    model = make_network()
    sample = make_sample(model)
    maps = outputs(model, sample.images)
    scores = maps.mean(axis=(1, 2)).var(axis=0) * sample.feature_weights
    smaller = prune_features(model, sample, 0.5)
    kept = np.sort(np.argsort(scores)[24:])
    assert smaller.output.shape[-1] == 24
    np.testing.assert_allclose(outputs(smaller, sample.images), maps[..., kept], atol=1e-4)


def test_a_residual_stream_loses_a_feature_everywhere():
    images = keras.Input((16, 16, 3))
    stem = layers.Conv2D(32, 3, padding="same", name="stem")(images)
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="inner")(stem)
    x = layers.Conv2D(32, 1, name="outer")(x)
    model = keras.Model(images, layers.Add()([stem, x]))
    smaller = prune_features(model, make_sample(model), 0.25)
    assert smaller.output.shape[-1] == 24
    assert smaller.get_layer("stem").kernel.shape == (3, 3, 3, 24)
    assert smaller.get_layer("inner").kernel.shape == (3, 3, 24, 32)
    assert smaller.get_layer("outer").kernel.shape == (1, 1, 32, 24)


def test_layers_that_mix_channels_in_other_ways_are_left_alone():
    images = keras.Input((16, 16, 3))
    x = layers.Conv2D(32, 3, padding="same", name="first")(images)
    x = layers.LayerNormalization(name="normed")(x)
    x = layers.Conv2D(32, 3, padding="same", name="second")(x)
    model = keras.Model(images, layers.Conv2D(16, 1, name="last")(x))
    smaller = prune_channels(model, make_sample(model), 0.5)
    assert smaller.get_layer("first").filters == 32
    assert smaller.get_layer("second").filters == 16
