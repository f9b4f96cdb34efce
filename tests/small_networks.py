"""A small network with all that compression has to handle, and images for it."""

import keras
import numpy as np
from keras import layers

from keras_transfer.compression.sample import Sample


def make_network(size: int = 24, width: int = 16) -> keras.Model:
    """Convolutions, BatchNormalization, a residual sum, a depthwise layer and channel attention."""
    keras.utils.set_random_seed(0)
    images = keras.Input((size, size, 3))
    x = layers.Conv2D(width, 3, strides=2, padding="same", name="first")(images)
    x = layers.BatchNormalization(name="norm")(x)
    stem = layers.ReLU(name="stem")(x)
    x = layers.Conv2D(2 * width, 1, activation="relu", name="wide")(stem)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.BatchNormalization(name="depthwise_norm")(x)
    x = layers.ReLU(name="depthwise_relu")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="gap")(x)
    gate = layers.Conv2D(2 * width, 1, activation="sigmoid", name="gate")(gate)
    x = layers.Multiply(name="gated")([x, gate])
    x = layers.Conv2D(width, 1, name="narrow")(x)
    x = layers.Add(name="sum")([x, stem])
    x = layers.Conv2D(3 * width, 3, strides=2, padding="same", activation="relu", name="last")(x)
    model = keras.Model(images, x)
    draw = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            gamma, beta, mean, variance = (np.shape(weight) for weight in layer.get_weights())
            layer.set_weights(
                [
                    draw.uniform(0.5, 1.5, gamma),
                    draw.normal(0, 0.3, beta),
                    draw.normal(0, 0.3, mean),
                    draw.uniform(0.5, 1.5, variance),
                ]
            )
    return model


def make_sample(model: keras.Model, num_images: int = 12) -> Sample:
    """Smooth random images, and random weights of the features."""
    draw = np.random.default_rng(1)
    size = model.input.shape[1]
    images = draw.normal(0, 1, (num_images, size, size, 3)).astype("float32")
    images = images + np.roll(images, 1, axis=1) + np.roll(images, 1, axis=2)
    weights = draw.uniform(0, 1, model.output.shape[-1]).astype("float32")
    return Sample(images, weights)
