"""The rows of the families made for small devices: MobileNets and EfficientNets.

Stages and weights are as `families` explains.
"""

from collections.abc import Iterator

from keras_transfer.backbones.families import KERAS, published, stages
from keras_transfer.backbones.record import Backbone, Stage


def rows() -> Iterator[Backbone]:
    """The rows of this module."""
    yield from _mobilenet()
    yield from _mobilenet_v2()
    yield from _mobilenet_v3()
    yield from _efficientnet()
    yield from _efficientnet_v2()


def _mobilenet() -> Iterator[Backbone]:
    ends = [f"conv_pw_{block}_relu" for block in (1, 3, 5, 11, 13)]
    for alpha, text in ((0.25, "2_5"), (0.5, "5_0"), (0.75, "7_5"), (1.0, "1_0")):
        yield Backbone(
            name=f"mobilenet_{alpha}",
            constructor="MobileNet",
            arguments={"alpha": alpha},
            mode="tf",
            image_size=224,
            stages=stages(*ends, stem="conv1_relu"),
            imagenet=published(
                f"{KERAS}/mobilenet", f"mobilenet_{text}_224_tf_no_top.h5", digest=""
            ),
        )


def _mobilenet_v2() -> Iterator[Backbone]:
    ends = ["expanded_conv_project_BN", "block_2_add", "block_5_add", "block_12_add", "out_relu"]
    for alpha in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4):
        file = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5"
        yield Backbone(
            name="mobilenet_v2" if alpha == 1.0 else f"mobilenet_v2_{alpha}",
            constructor="MobileNetV2",
            arguments={"alpha": alpha},
            mode="tf",
            image_size=224,
            stages=stages(*ends, stem="Conv1_relu"),
            imagenet=published(f"{KERAS}/mobilenet_v2", file, digest=""),
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
        blocks = stages(*small, first=2) if size == "small" else stages(*large)
        yield Backbone(
            name=f"mobilenet_v3_{size}" + ("" if text == "1.0" else f"_{text}"),
            constructor=f"MobileNetV3{size.capitalize()}",
            arguments={"alpha": alpha, "minimalistic": minimal, "include_preprocessing": False},
            mode="tf",
            image_size=224,
            stages=(Stage("stem", next_layer=opener), *blocks),
            imagenet=published(
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
        yield Backbone(
            name=f"efficientnet_b{number}",
            constructor=f"EfficientNetB{number}",
            mode="torch",
            image_size=image_size,
            stages=stages(*ends, "top_activation", stem="stem_activation"),
            imagenet=published(
                "https://storage.googleapis.com/keras-applications",
                f"efficientnetb{number}_notop.h5",
                digest=digest,
            ),
            leave_out=("Rescaling", "Normalization", "Dropout"),
        )


def _efficientnet_v2() -> Iterator[Backbone]:
    """As before; the larger three scale their own input, to x / 128 - 1."""
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
        yield Backbone(
            name=f"efficientnet_v2_{size}",
            constructor=f"EfficientNetV2{size.upper()}",
            arguments={"include_preprocessing": scales_itself},
            mode="none" if scales_itself else "torch",
            image_size=image_size,
            stages=stages(*ends, "top_activation", stem="stem_activation"),
            imagenet=published(
                f"{KERAS}/efficientnet_v2", f"efficientnetv2-{size}_notop.h5", digest=digest
            ),
            leave_out=("Dropout",),
        )
