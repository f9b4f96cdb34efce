"""Layers in two factors: exact where nothing is lost, and within the amount otherwise."""

import keras
import numpy as np
from keras import layers
from small_networks import make_network, make_sample

from keras_transfer.compression.low_rank import _rank, factorise


def outputs(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return model.predict(images, verbose=0)


def one_layer(kernel: np.ndarray, activation: str | None = None) -> keras.Model:
    images = keras.Input((12, 12, 3))
    size = int(np.sqrt(kernel.shape[0] // 3))
    layer = layers.Conv2D(kernel.shape[1], size, activation=activation, name="only")
    model = keras.Model(images, layer(images))
    bias = np.random.default_rng(2).normal(0, 1, kernel.shape[1])
    layer.set_weights([kernel.reshape(size, size, 3, -1), bias])
    return model


def test_a_layer_of_low_rank_is_replaced_exactly():
    draw = np.random.default_rng(0)
    model = one_layer(draw.normal(0, 1, (27, 5)) @ draw.normal(0, 1, (5, 64)), "relu")
    sample = make_sample(model)
    smaller = factorise(model, sample, 1e-9)
    assert smaller.get_layer("only").filters == 5
    assert smaller.count_params() < 0.4 * model.count_params()
    np.testing.assert_allclose(
        outputs(smaller, sample.images), outputs(model, sample.images), rtol=1e-3, atol=1e-3
    )


def test_the_loss_of_a_layer_is_at_most_the_amount():
    draw = np.random.default_rng(0)
    kernel = draw.normal(0, 1, (27, 27)) * np.geomspace(1, 1e-2, 27) @ draw.normal(0, 1, (27, 64))
    model = one_layer(kernel)
    sample = make_sample(model, num_images=40)
    expected = outputs(model, sample.images)
    variance = np.square(expected - expected.mean(axis=(0, 1, 2))).sum()
    sizes = []
    for amount in (0.001, 0.01, 0.1):
        smaller = factorise(model, sample, amount)
        errors = np.square(outputs(smaller, sample.images) - expected).sum()
        assert errors / variance < 1.1 * amount
        sizes.append(smaller.count_params())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < model.count_params()


def test_layers_that_would_not_be_smaller_stay():
    model = make_network()
    sample = make_sample(model)
    same = factorise(model, sample, 0.0)
    np.testing.assert_allclose(
        outputs(same, sample.images), outputs(model, sample.images), atol=1e-4
    )


def test_the_rank_holds_all_but_the_amount():
    variances = np.array([6.0, 3.0, 1.0])
    assert [_rank(variances, amount) for amount in (0, 0.05, 0.1, 0.4, 0.9)] == [3, 3, 2, 1, 1]
    assert _rank(np.zeros(3), 0.1) >= 1


def test_dense_layers_are_factorised():
    images = keras.Input((8, 8, 3))
    x = layers.Flatten()(images)
    draw = np.random.default_rng(0)
    dense = layers.Dense(96, activation="relu", name="dense")
    model = keras.Model(images, layers.Reshape((1, 1, 96))(dense(x)))
    dense.set_weights([draw.normal(0, 1, (192, 4)) @ draw.normal(0, 1, (4, 96)), np.ones(96)])
    sample = make_sample(model, num_images=32)
    smaller = factorise(model, sample, 1e-9)
    assert smaller.get_layer("dense").units == 4
    np.testing.assert_allclose(
        outputs(smaller, sample.images), outputs(model, sample.images), rtol=1e-3, atol=1e-2
    )
