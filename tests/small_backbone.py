"""A tiny backbone for tests: `model.backbone=small`, registered by conftest.py in this process.

It has three stages with a convolution, BatchNormalization, a sum and pooling each: all that cuts,
folding and freezing have to handle, in 16 layers instead of the 86 of the smallest MobileNet.
"""

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
