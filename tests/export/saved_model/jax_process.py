"""A classifier of Keras's JAX backend, saved and exported in a process of its own.

`KERAS_BACKEND=jax python jax_process.py FOLDER IMAGE…` leaves in FOLDER model.keras, export/1 and
recorded.npz with the outputs of the model itself.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from keras_transfer.devices import speed_up_imports

speed_up_imports()

import jax
import keras
import numpy as np

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.config import override
from keras_transfer.data.reading import read_pixels
from keras_transfer.export.card import hash_weights
from keras_transfer.export.saved_model.proof import export_proven
from keras_transfer.inference.explanation import HIGHEST, explainer
from keras_transfer.models.forward import predict_pixels
from keras_transfer.specs import RunSpec
from keras_transfer.storage.class_names import model_name
from keras_transfer.tasks.single_label import SingleLabel

CLASS_NAMES = ("temple", "flower", "path")
SIZE = 32


def build() -> keras.Model:
    """Two convolutions, each with a BatchNormalization that has seen something."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3), name="image", dtype="float32")
    x = Preprocess("torch")(inputs)
    for convolution in (layers.Conv2D(16, 3, strides=4), layers.DepthwiseConv2D(3)):
        x = layers.BatchNormalization()(convolution(x))
        x = layers.Activation("relu")(x)
    x = layers.GlobalAveragePooling2D(name="pooling")(x)
    x = layers.Dropout(0.5)(x)
    outputs = layers.Dense(len(CLASS_NAMES), name="logits")(x)
    model = keras.Model(inputs, outputs, name=model_name(CLASS_NAMES))
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 2, w.shape) for w in layer.get_weights()])
    return model


class Hearing(keras.layers.Layer):
    """Notes in what precision JAX is to multiply whenever a program is made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str | None] = []

    def call(self, x):
        self.heard.append(jax.config.jax_default_matmul_precision)
        return x


def hear() -> list[str | None]:
    """The precision that a model saw before and after it ran in full float32."""
    layer = Hearing()
    model = keras.Sequential([keras.Input((2, 2, 3)), layer, keras.layers.Flatten()])
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    layer.heard.clear()
    model.predict_on_batch(pixels.astype(np.float32))
    predict_pixels(model, pixels, activation="softmax")
    return layer.heard


def main(folder: str, *names: str) -> None:
    files = [Path(name) for name in names]
    images = read_pixels(files, image_size=SIZE, resize="crop", max_megapixels=1)
    pixels = np.stack([image.pixels for image in images])
    model = build()
    model.save(Path(folder, "model.keras"))
    probabilities = predict_pixels(model, pixels, activation="softmax")
    export_proven(
        model,
        Path(folder, "export", "1"),
        spec=override(RunSpec(), {"name": "photos", "data.image_size": SIZE}),
        task=SingleLabel(tuple(CLASS_NAMES)),
        files=files,
        outputs=probabilities,
    )
    explained, heat = explainer(model, SingleLabel(()))(pixels, HIGHEST)
    np.savez(
        Path(folder, "recorded.npz"),
        backend=keras.backend.backend(),
        pixels=pixels,
        probabilities=probabilities,
        explained=explained,
        heat=heat,
        weights_hash=hash_weights(model),
        heard=[str(precision) for precision in hear()],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
