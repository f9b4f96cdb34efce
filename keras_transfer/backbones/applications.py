"""The backbones of `keras.applications`, family by family.

Stages are named by their resolution: `stage k` has the layers at 1/2^k of the input's side, up to
the last tensor of that size, so that `stage3` means the same resolution in every family, whatever
its paper calls the blocks. `stem` has the layers before the first block. A family lacks the stages
it cannot be cut at: ResNets, DenseNets and ConvNeXts reach 1/4 in their stem; the layers below the
first mixed block of the Inceptions have no fixed names; every cell of NASNet has the two cells
before it as inputs, so that only its stem can be cut off.

The weights are those that `keras.applications` publishes for `include_top=False` and images of
side `image_size`. Their digests are those in Keras.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_transfer.backbones.record import Backbone, Stage
from keras_transfer.backbones.sources import PublishedWeights

if TYPE_CHECKING:
    import keras

KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
NOTOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"


@dataclass(frozen=True)
class Application:
    """The builder of a network of `keras.applications`, named by its constructor."""

    constructor: str
    arguments: tuple[tuple[str, Any], ...] = ()
    """Additional arguments of the constructor."""

    def __call__(self, images: "keras.KerasTensor") -> "keras.KerasTensor":
        """Put Keras's layers, without the classification layers, on scaled images: feature map."""
        return self.network(include_top=False, input_tensor=images).output

    def network(self, **arguments: Any) -> "keras.Model":
        """Keras's own network with random weights."""
        import keras

        constructor = getattr(keras.applications, self.constructor)
        return constructor(weights=None, **dict(self.arguments), **arguments)


def rows() -> Iterator[Backbone]:
    """All rows of this module."""
    yield from _vgg()
    yield from _resnet()
    yield from _resnet_v2()
    yield from _densenet()
    yield from _inception()
    yield from _xception()
    yield from _nasnet()
    yield from _convnext()
    yield from _mobilenet()
    yield from _mobilenet_v2()
    yield from _mobilenet_v3()
    yield from _efficientnet()
    yield from _efficientnet_v2()


def _row(
    *,
    constructor: str,
    imagenet: PublishedWeights,
    arguments: Mapping[str, Any] = {},
    **record: Any,
) -> Backbone:
    """A row with the layers and ImageNet weights of `keras.applications`."""
    builder = Application(constructor, tuple((arguments or {}).items()))
    return Backbone(builder=builder, weights={"imagenet": imagenet}, **record)


def _stages(*last_layers: str, first: int = 1, stem: str = "") -> tuple[Stage, ...]:
    """A stem, if it has a name, then stages `first`, `first` + 1 … by their last layers."""
    numbered = [Stage(f"stage{k}", layer) for k, layer in enumerate(last_layers, start=first)]
    return (*([Stage("stem", stem)] if stem else []), *numbered)


def _published(
    folder: str, file: str, *, digest: str, origin: str = "Google, Apache 2.0"
) -> PublishedWeights:
    """Weights whose file has the same name at the source and in the cache."""
    return PublishedWeights(f"{folder}/{file}", file, digest, origin)


def _vgg() -> Iterator[Backbone]:
    for depth, digest in (
        (16, "6d6bbae143d832006294945121d1f1fc"),
        (19, "253f8cb515780f3b799900260a226db6"),
    ):
        name = f"vgg{depth}"
        yield _row(
            name=name,
            constructor=f"VGG{depth}",
            preprocessing="caffe",
            image_size=224,
            stages=_stages(*(f"block{k}_pool" for k in range(1, 6))),
            imagenet=_published(
                f"{KERAS}/{name}", f"{name}_{NOTOP}", digest=digest, origin="VGG, Oxford, CC BY 4.0"
            ),
        )


def _resnet() -> Iterator[Backbone]:
    for depth, blocks, digest in (
        (50, (3, 4, 6, 3), "4d473c1dd8becc155b73f8504c6f6626"),
        (101, (3, 4, 23, 3), "88cf7a10940856eca736dc7b7e228a21"),
        (152, (3, 8, 36, 3), "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    ):
        name = f"resnet{depth}"
        ends = [f"conv{k}_block{count}_out" for k, count in enumerate(blocks, start=2)]
        yield _row(
            name=name,
            constructor=f"ResNet{depth}",
            preprocessing="caffe",
            image_size=224,
            stages=_stages(*ends, first=2, stem="pool1_pool"),
            imagenet=_published(
                f"{KERAS}/resnet",
                f"{name}_{NOTOP}",
                digest=digest,
                origin="Kaiming He and others, MIT",
            ),
        )


def _resnet_v2() -> Iterator[Backbone]:
    """Here the last block of conv2, conv3 and conv4 has stride 2, so it starts the next stage."""
    for depth, blocks, digest in (
        (50, (3, 4, 6), "fac2f116257151a9d068a22e544a4917"),
        (101, (3, 4, 23), "c0ed64b8031c3730f411d2eb4eea35b5"),
        (152, (3, 8, 36), "ed17cf2e0169df9d443503ef94b23b33"),
    ):
        ends = [f"conv{k}_block{count - 1}_out" for k, count in enumerate(blocks, start=2)]
        yield _row(
            name=f"resnet{depth}_v2",
            constructor=f"ResNet{depth}V2",
            preprocessing="tf",
            image_size=224,
            stages=_stages(*ends, "post_relu", first=2, stem="pool1_pool"),
            imagenet=_published(
                f"{KERAS}/resnet",
                f"resnet{depth}v2_{NOTOP}",
                digest=digest,
                origin="Keras, licence not stated",
            ),
        )


def _densenet() -> Iterator[Backbone]:
    for depth, blocks, digest in (
        (121, (6, 12, 24), "30ee3e1110167f948a6b9946edeeb738"),
        (169, (6, 12, 32), "b8c4d4c20dd625c148057b9ff1c1176b"),
        (201, (6, 12, 48), "c13680b51ded0fb44dff2d8f86ac8bb1"),
    ):
        name = f"densenet{depth}"
        ends = [f"conv{k}_block{count}_concat" for k, count in enumerate(blocks, start=2)]
        yield _row(
            name=name,
            constructor=f"DenseNet{depth}",
            preprocessing="torch",
            image_size=224,
            stages=_stages(*ends, "relu", first=2, stem="pool1"),
            imagenet=_published(
                f"{KERAS}/densenet",
                f"{name}_{NOTOP}",
                digest=digest,
                origin="Zhuang Liu and others, BSD 3-clause",
            ),
        )


def _inception() -> Iterator[Backbone]:
    for name, constructor, ends, digest in (
        (
            "inception_v3",
            "InceptionV3",
            ("mixed2", "mixed7", "mixed10"),
            "bcbd6486424b2319ff4ef7d526e38f63",
        ),
        (
            "inception_resnet_v2",
            "InceptionResNetV2",
            ("block35_10_ac", "block17_20_ac", "conv_7b_ac"),
            "d19885ff4a710c122648d3b5c3b684e4",
        ),
    ):
        yield _row(
            name=name,
            constructor=constructor,
            preprocessing="tf",
            image_size=299,
            minimal_size=75,
            stages=_stages(*ends, first=3),
            imagenet=_published(f"{KERAS}/{name}", f"{name}_{NOTOP}", digest=digest),
        )


def _xception() -> Iterator[Backbone]:
    """Its blocks end with sums that have no names of their own."""
    openers = ("block3_sepconv1_act", "block4_sepconv1_act", "block13_sepconv1_act")
    yield _row(
        name="xception",
        constructor="Xception",
        preprocessing="tf",
        image_size=299,
        minimal_size=71,
        stages=(
            Stage("stem", "block1_conv2_act"),
            *(Stage(f"stage{k}", next_layer=layer) for k, layer in enumerate(openers, start=2)),
            Stage("stage5", "block14_sepconv2_act"),
        ),
        imagenet=_published(
            f"{KERAS}/xception",
            f"xception_{NOTOP}",
            digest="b0042744bf5b25fce3cb969f33bebb97",
            origin="François Chollet, MIT",
        ),
    )


def _nasnet() -> Iterator[Backbone]:
    for size, image_size, digest in (
        ("mobile", 224, "1ed92395b5b598bdda52abe5c0dbfd63"),
        ("large", 331, "d81d89dc07e6e56530c4e77faddd61b5"),
    ):
        yield _row(
            name=f"nasnet_{size}",
            constructor=f"NASNet{size.capitalize()}",
            preprocessing="tf",
            image_size=image_size,
            stages=(Stage("stem", "stem_bn1"), Stage("stage5")),
            imagenet=PublishedWeights(
                f"{KERAS}/nasnet/NASNet-{size}-no-top.h5",
                f"nasnet_{size}_no_top.h5",
                digest,
                "Google, Apache 2.0",
            ),
        )


def _convnext() -> Iterator[Backbone]:
    """Blocks end with sums without names; a named layer shrinks the image between stages."""
    for size, digest in (
        ("tiny", "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"),
        ("small", "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab"),
        ("base", "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45"),
        ("large", "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd"),
        ("xlarge", "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05"),
    ):
        name = f"convnext_{size}"
        yield _row(
            name=name,
            constructor="ConvNeXtXLarge" if size == "xlarge" else f"ConvNeXt{size.capitalize()}",
            arguments={"include_preprocessing": False},
            preprocessing="torch",
            image_size=224,
            stages=(
                Stage("stem", f"{name}_stem"),
                *(
                    Stage(f"stage{k + 2}", next_layer=f"{name}_downsampling_block_{k}")
                    for k in range(3)
                ),
                Stage("stage5"),
            ),
            imagenet=_published(
                f"{KERAS}/convnext",
                f"{name}_notop.h5",
                digest=digest,
                origin="Facebook Research, MIT",
            ),
        )


def _mobilenet() -> Iterator[Backbone]:
    ends = [f"conv_pw_{block}_relu" for block in (1, 3, 5, 11, 13)]
    for alpha, text in ((0.25, "2_5"), (0.5, "5_0"), (0.75, "7_5"), (1.0, "1_0")):
        yield _row(
            name=f"mobilenet_{alpha}",
            constructor="MobileNet",
            arguments={"alpha": alpha},
            preprocessing="tf",
            image_size=224,
            stages=_stages(*ends, stem="conv1_relu"),
            imagenet=_published(
                f"{KERAS}/mobilenet", f"mobilenet_{text}_224_tf_no_top.h5", digest=""
            ),
        )


def _mobilenet_v2() -> Iterator[Backbone]:
    ends = ["expanded_conv_project_BN", "block_2_add", "block_5_add", "block_12_add", "out_relu"]
    for alpha in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4):
        file = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5"
        yield _row(
            name="mobilenet_v2" if alpha == 1.0 else f"mobilenet_v2_{alpha}",
            constructor="MobileNetV2",
            arguments={"alpha": alpha},
            preprocessing="tf",
            image_size=224,
            stages=_stages(*ends, stem="Conv1_relu"),
            imagenet=_published(f"{KERAS}/mobilenet_v2", file, digest=""),
        )


def _mobilenet_v3() -> Iterator[Backbone]:
    """Small ones reach 1/4 in their first block; activations have no names of their own."""
    small = ("expanded_conv_project_bn", "expanded_conv_2_add", "expanded_conv_7_add", "")
    large = ("expanded_conv_add", *(f"expanded_conv_{block}_add" for block in (2, 5, 11)), "")
    for size, text, digest in (
        ("small", "0.75", "ebdb5cc8e0b497cd13a7c275d475c819"),
        ("small", "1.0", "d3e8ec802a04aa4fc771ee12a9a9b836"),
        ("small", "minimalistic", "cde8136e733e811080d9fcd8a252f7e4"),
        ("large", "0.75", "40af19a13ebea4e2ee0c676887f69a2e"),
        ("large", "1.0", "07fb09a5933dd0c8eaafa16978110389"),
        ("large", "minimalistic", "ec5221f64a2f6d1ef965a614bdae7973"),
    ):
        minimal, alpha = text == "minimalistic", 0.75 if text == "0.75" else 1.0
        variant = f"{size}_minimalistic_224_1.0" if minimal else f"{size}_224_{text}"
        opener = "expanded_conv_depthwise" + ("_pad" if size == "small" else "")
        blocks = _stages(*small, first=2) if size == "small" else _stages(*large)
        yield _row(
            name=f"mobilenet_v3_{size}" + ("" if text == "1.0" else f"_{text}"),
            constructor=f"MobileNetV3{size.capitalize()}",
            arguments={"alpha": alpha, "minimalistic": minimal, "include_preprocessing": False},
            preprocessing="tf",
            image_size=224,
            stages=(Stage("stem", next_layer=opener), *blocks),
            imagenet=_published(
                f"{KERAS}/mobilenet_v3",
                f"weights_mobilenet_v3_{variant}_float_no_top_v2.h5",
                digest=digest,
            ),
        )


def _efficientnet() -> Iterator[Backbone]:
    """Stages end with blocks 1, 2, 3 and 5; the letters are how often those are repeated."""
    for number, image_size, letters, digest in (
        (0, 224, "abbc", "50bc09e76180e00e4465e1a485ddc09d"),
        (1, 240, "bccd", "74c4e6b3e1f6a1eea24c589628592432"),
        (2, 260, "bccd", "111f8e2ac8aa800a7a99e3239f7bfb39"),
        (3, 300, "bcce", "af6d107764bb5b1abb91932881670226"),
        (4, 380, "bddf", "ebc24e6d6c33eaebbd558eafbeedf1ba"),
        (5, 456, "ceeg", "38879255a25d3c92d5e44e04ae6cec6f"),
        (6, 528, "cffh", "9ecce42647a20130c1f39a5d4cb75743"),
        (7, 600, "dggj", "cbcfe4450ddf6f3ad90b1b398090fe4a"),
    ):
        ends = [f"block{k}{letter}_add" for k, letter in zip((1, 2, 3, 5), letters, strict=True)]
        if letters[0] == "a":
            ends[0] = "block1a_project_bn"
        yield _row(
            name=f"efficientnet_b{number}",
            constructor=f"EfficientNetB{number}",
            preprocessing="torch",
            image_size=image_size,
            stages=_stages(*ends, "top_activation", stem="stem_activation"),
            imagenet=_published(
                "https://storage.googleapis.com/keras-applications",
                f"efficientnetb{number}_notop.h5",
                digest=digest,
            ),
            leave_out=("Rescaling", "Normalization", "Dropout"),
        )


def _efficientnet_v2() -> Iterator[Backbone]:
    """Stages as in EfficientNet; the larger three scale their own input, to x / 128 - 1."""
    for size, image_size, letters, digest in (
        ("b0", 224, "abbe", "893217f2bb855e2983157299931e43ff"),
        ("b1", 240, "bccf", "0e80663031ca32d657f9caa404b6ec37"),
        ("b2", 260, "bccf", "1dfe2e7a5d45b6632553a8961ea609eb"),
        ("b3", 300, "bccg", "f6abf7b5849ac99a89b50dd3fd532856"),
        ("s", 384, "bddi", "af0682fb74e8c54910f2d4393339c070"),
        ("m", 480, "ceen", "1b8dc055df72dde80d614482840fe342"),
        ("l", 480, "dggs", "b0b66b5c863aef5b46e8608fe1711615"),
    ):
        ends = [f"block{k}{letter}_add" for k, letter in zip((1, 2, 3, 5), letters, strict=True)]
        if letters[0] == "a":
            ends[0] = "block1a_project_activation"
        scales_itself = size in ("s", "m", "l")
        yield _row(
            name=f"efficientnet_v2_{size}",
            constructor=f"EfficientNetV2{size.upper()}",
            arguments={"include_preprocessing": scales_itself},
            preprocessing="none" if scales_itself else "torch",
            image_size=image_size,
            stages=_stages(*ends, "top_activation", stem="stem_activation"),
            imagenet=_published(
                f"{KERAS}/efficientnet_v2", f"efficientnetv2-{size}_notop.h5", digest=digest
            ),
            leave_out=("Dropout",),
        )
