"""A tiny backbone for tests: `model.backbone=small`, registered by conftest.py in this process.

Other processes do not know it, but can read it from a model file.

It has three stages with a convolution, BatchNormalization, a sum and pooling each: all that cuts,
folding and freezing have to handle, in 16 layers instead of the 86 of the smallest MobileNet.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from keras_transfer.backbones.record import Backbone, Stage

if TYPE_CHECKING:
    import keras

WIDTHS = (4, 8, 16)


def build_small(pixels: "keras.KerasTensor") -> "keras.KerasTensor":
    """The layers on scaled images `[B, S, S, 3]`; the feature map is `[B, S/8, S/8, 16]`."""
    from keras import layers

    features = pixels
    for stage, width in enumerate(WIDTHS, start=1):
        name = f"small{stage}"
        features = layers.Conv2D(width, 3, padding="same", name=f"{name}_conv")(features)
        features = layers.BatchNormalization(name=f"{name}_bn")(features)
        activated = layers.ReLU(name=f"{name}_relu")(features)
        features = layers.Add(name=f"{name}_add")([features, activated])
        features = layers.MaxPooling2D(name=f"{name}_pool")(features)
    return features


SMALL = Backbone(
    name="small",
    builder=build_small,
    preprocessing="tf",
    image_size=32,
    minimal_size=8,
    stages=tuple(Stage(f"stage{stage}", f"small{stage}_pool") for stage in (1, 2, 3)),
)


def save_small(file: Path, *, image_size: int = 32, seed: int = 1) -> Path:
    """A Keras model file with these layers, their scaling inside, and four outputs on top."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    image = keras.Input((image_size, image_size, 3))
    pooled = layers.GlobalAveragePooling2D()(build_small(layers.Rescaling(1 / 255)(image)))
    keras.Model(image, layers.Dense(4)(pooled)).save(file)
    return file
