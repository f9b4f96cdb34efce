"""Graphs of networks: traced once for batches of any size, without warnings of TensorFlow."""

import logging

import keras
import numpy as np
import pytest

from keras_transfer.devices.graphs import trace_once

PIXELS = np.random.default_rng(0).uniform(0, 255, (5, 8, 8, 3)).astype(np.float32)


@pytest.fixture
def warned() -> list[str]:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("tensorflow")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def small_model() -> keras.Model:
    images = keras.Input((8, 8, 3))
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(images))
    return keras.Model(images, keras.layers.Dropout(0.5)(keras.layers.Dense(3)(features)))


def test_several_models_predict_batches_of_several_sizes_without_a_warning(warned):
    for _ in range(6):
        model = small_model()
        run = trace_once(model)
        for size in (1, 3, 5):
            expected = keras.ops.convert_to_numpy(model(PIXELS[:size], training=False))
            np.testing.assert_allclose(run(PIXELS[:size]), expected, rtol=1e-5, atol=1e-5)
    assert not [text for text in warned if "retracing" in text]


def test_later_changes_of_the_weights_count():
    model = small_model()
    run = trace_once(model)
    before = run(PIXELS)
    model.layers[-2].bias.assign_add(np.ones(3))
    np.testing.assert_allclose(run(PIXELS), before + 1, rtol=1e-5, atol=1e-5)
