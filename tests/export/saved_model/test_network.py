"""The network as it is served: frozen like trained, nothing random left, and heat maps by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer.export.saved_model.network import (
    Network,
    as_trained,
    frozen,
    grad_cam,
    gradient_of,
    heat_map,
)
from keras_transfer.models.classifier import build_classifier
from keras_transfer.specs import ModelSpec
from keras_transfer.tasks.single_label import SingleLabel

ON_JAX = keras.backend.backend() == "jax"


def classifier(**changes) -> keras.Model:
    spec = ModelSpec(**{"backbone": "mobilenet_0.25", "weights": "none"} | changes)
    names = ("ant", "bee", "wasp")
    return build_classifier(spec, image_size=32, task=SingleLabel(tuple(names)), seed=0).model


@pytest.fixture
def pixels() -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)), tf.uint8)


@pytest.mark.parametrize("backbone", ["mobilenet_0.25", "efficientnet_b0"])
def test_frozen_predicts_like_trained_and_holds_only_the_heads_variables(backbone, pixels):
    # Compiling a whole trunk for JAX takes a CPU longer than the rest of the test.
    last_stage = "stage2" if ON_JAX else ""
    model = classifier(backbone=backbone, dropout=0.5, last_stage=last_stage)
    trained, served = as_trained(model), frozen(model, precision="float32")
    np.testing.assert_allclose(served.logits(pixels), trained.logits(pixels), atol=1e-5)
    if ON_JAX:
        # XLA's programs have no constants of their own, but fewer weights: none of BatchNorm's.
        assert 0 < len(served.variables) < len(trained.variables)
        return
    assert [variable.shape for variable in served.variables] == [
        variable.shape for variable in model.get_layer("logits").weights
    ]


def test_frozen_in_half_precision_predicts_nearly_like_trained(pixels):
    model = classifier()
    served = frozen(model, precision="bfloat16").logits(pixels)
    assert served.dtype == tf.float32
    exact = as_trained(model).logits(pixels)
    assert 0 < np.abs(served - exact).max() < 0.05


def test_grad_cam_is_the_class_activation_map_of_pooling_and_a_dense_layer():
    """CAM / (h · w), by its definition, for every class."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(2, 5, 4, 7)).astype(np.float32)
    kernel = generator.normal(size=(7, 3)).astype(np.float32)

    def head(values: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(values, axis=(1, 2)) @ kernel

    network = Network(tf.identity, head, gradient_of(head), [])
    for column in range(3):
        found = grad_cam(
            network, tf.constant(features), network.head(features), tf.fill([2], column)
        )
        by_hand = np.einsum("bhwk,k->bhw", features, kernel[:, column]) / (5 * 4)
        np.testing.assert_allclose(found, by_hand, atol=1e-6)
    best = (features.mean(axis=(1, 2)) @ kernel).argmax(axis=1)
    np.testing.assert_array_equal(
        grad_cam(network, tf.constant(features), network.head(features), tf.constant([-1, -1])),
        grad_cam(
            network, tf.constant(features), network.head(features), tf.constant(best, tf.int32)
        ),
    )


def test_heat_map_reaches_one_and_is_zero_where_nothing_speaks_for_the_class():
    signed = np.array([[[-2.0, 1.0], [4.0, 0.0]], [[-1.0, -2.0], [-3.0, -0.5]]], np.float32)
    shown = heat_map(tf.constant(signed)).numpy()
    np.testing.assert_array_equal(shown[0], [[0, 0.25], [1, 0]])
    np.testing.assert_array_equal(shown[1], np.zeros((2, 2)))


def test_head_of_every_kind_has_a_gradient(pixels):
    for changes in ({"pooling": "max"}, {"pooling": "flatten"}, {"head": "mlp"}):
        model = classifier(last_stage="stage2", **changes)
        served = frozen(model, precision="float32")
        features = served.trunk(tf.cast(pixels, tf.float32))
        signed = grad_cam(served, features, served.head(features), tf.constant([0, 1, 2]))
        assert signed.shape == features.shape[:3]
        assert np.isfinite(signed).all()
        assert np.abs(signed).max() > 0
