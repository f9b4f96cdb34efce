"""Weights of few values: the closed forms of k-means in one dimension, and the file."""

import keras
import numpy as np
import pytest
from small_networks import make_network, make_sample

from keras_transfer.compression.clusters import (
    nearest_values,
    read_codebooks,
    share_weights,
    write_codebooks,
)


def squared_error(weights: np.ndarray, count: int) -> float:
    return float(np.square(nearest_values(weights, count) - weights).mean())


@pytest.fixture
def weights() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (3, 3, 16, 32)).astype("float32")


def test_more_values_lose_less_and_no_more_than_values_at_equal_distances(weights):
    errors = [squared_error(weights, count) for count in (2, 4, 8, 16, 64, 256)]
    assert errors == sorted(errors, reverse=True)
    low, high = weights.min(), weights.max()
    for count in (4, 16, 64):
        steps = np.round((weights - low) / (high - low) * (count - 1))
        even = low + steps * (high - low) / (count - 1)
        assert squared_error(weights, count) <= np.square(even - weights).mean()
        assert len(np.unique(nearest_values(weights, count))) <= count


def test_as_many_values_as_there_are_change_nothing():
    weights = np.float32([[0, 1, 1], [2, 0, 2]])
    np.testing.assert_array_equal(nearest_values(weights, 3), weights)
    np.testing.assert_allclose(nearest_values(weights, 2), [[0, 1.5, 1.5], [1.5, 0, 1.5]])


def test_each_centroid_is_the_mean_of_its_weights(weights):
    shared = nearest_values(weights, 8)
    for value in np.unique(shared):
        assert value == pytest.approx(weights[shared == value].mean(), abs=1e-5)


def test_layers_have_few_values_and_the_means_of_the_whole_network():
    model = make_network()
    sample = make_sample(model)
    shared = share_weights(model, sample, 16)
    for layer in shared.layers:
        for weight in layer.get_weights():
            assert weight.ndim == 1 or len(np.unique(weight)) <= 16
    expected = model.predict(sample.images, verbose=0)
    found = shared.predict(sample.images, verbose=0)
    assert np.square(found - expected).mean() < 0.1 * expected.var()


def test_the_file_has_all_weights_and_is_small(tmp_path):
    model = share_weights(make_network(width=64), make_sample(make_network(width=64)), 16)
    write_codebooks(model, tmp_path / "weights.npz")
    found = read_codebooks(tmp_path / "weights.npz")
    assert found.keys() == {variable.path for variable in model.weights}
    for variable in model.weights:
        np.testing.assert_array_equal(found[variable.path], keras.ops.convert_to_numpy(variable))
    size = (tmp_path / "weights.npz").stat().st_size
    assert size < 0.3 * 4 * model.count_params()
