"""EfficientNet-Lite with its real ImageNet weights."""

import functools
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer.backbones.registry import get_backbone
from keras_transfer.backbones.torch_files import read_tensors
from keras_transfer.backbones.trunk import build_trunk
from keras_transfer.backbones.weights import load_network
from keras_transfer.data.images import decode_and_resize
from keras_transfer.errors import WeightsError

MILLIONS = {"efficientnet_lite0": 4.7, "efficientnet_lite1": 5.4, "efficientnet_lite2": 6.1}
"""Trainable parameters as published, with the classification layer."""
CLASSES = {"flowers_small/val/daisy": 985, "ants_bees/val/ants": 310, "ants_bees/val/bees": 309}
"""Folders of photographs and their numbers among ImageNet's classes."""


@functools.cache
def features_of(name: str) -> keras.Model:
    """The whole trunk with its default weights, from pixels to the mean of its feature map."""
    row = get_backbone(name)
    inputs = keras.Input((row.image_size, row.image_size, 3))
    trunk = build_trunk(row, inputs, weights="imagenet")
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(trunk.output))


@functools.cache
def tensors_of(name: str) -> dict[str, np.ndarray]:
    row = get_backbone(name)
    return read_tensors(row.weights["package"].find(row))


@pytest.mark.parametrize("name", MILLIONS)
def test_size_is_the_published_one(name):
    layers = tensors_of(name)["_fc.weight"], tensors_of(name)["_fc.bias"]
    trainable = [np.prod(v.shape) for v in features_of(name).trainable_variables]
    assert round((sum(trainable) + sum(x.size for x in layers)) / 1e6, 1) == MILLIONS[name]


@pytest.mark.parametrize("name", MILLIONS)
def test_every_tensor_of_the_file_is_in_the_trunk_once(name):
    def sorted_values(arrays) -> Counter[bytes]:
        return Counter(np.sort(np.ravel(array)).tobytes() for array in arrays)

    of_the_trunk = [
        tensor
        for key, tensor in tensors_of(name).items()
        if key not in ("_fc.weight", "_fc.bias") and tensor.dtype == "float32"
    ]
    assert sorted_values(of_the_trunk) == sorted_values(features_of(name).get_weights())


@pytest.mark.parametrize("name", MILLIONS)
def test_photographs_have_their_imagenet_classes(name, shared_data):
    model, tensors = features_of(name), tensors_of(name)
    files, numbers = [], []
    for folder, number in CLASSES.items():
        chosen = sorted((shared_data / folder).iterdir())[:6]
        files += chosen
        numbers += [number] * len(chosen)
    size, encoded = model.input.shape[1], [tf.io.read_file(str(file)) for file in files]
    pixels = [decode_and_resize(each, image_size=size, resize="crop") for each in encoded]
    logits = np.asarray(model(tf.stack(pixels))) @ tensors["_fc.weight"].T + tensors["_fc.bias"]
    assert np.mean(logits.argmax(axis=1) == numbers) > 0.7


def test_weights_of_another_size_are_refused_and_nothing_is_loaded():
    model, lite1 = features_of("efficientnet_lite0"), get_backbone("efficientnet_lite1")
    file, before = lite1.weights["package"].find(lite1), model.get_weights()
    with pytest.raises(WeightsError, match="not hold the weights of efficientnet_lite0") as caught:
        load_network(model, file, backbone=get_backbone("efficientnet_lite0"))
    assert "only in the file" in caught.value.received
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
