"""The rows of the table, family by family; the small networks are in `small_families`.

Stages are named by how far the image has shrunk: `stage k` holds the layers that work at 1/2^k
of the input's side, up to the last tensor of that size, so that `stage3` asks for the same
resolution in every family, whatever its paper calls the blocks. `stem` is what comes before the
first block. A family lacks the stages it cannot be cut at: ResNets, DenseNets and ConvNeXts reach
1/4 in their stem; the layers below the first mixed block of the Inceptions have no names of their
own; every cell of NASNet reads the two cells before it, so that only its stem can be cut off.

The weights are those `keras.applications` publishes for `include_top=False` and the side given as
`image_size`. Their digests are Keras's.
"""

from collections.abc import Iterator

from keras_transfer.backbones.record import Backbone, PublishedWeights, Stage

KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
NOTOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"


def rows() -> Iterator[Backbone]:
    """The rows of this module."""
    yield from _vgg()
    yield from _resnet()
    yield from _resnet_v2()
    yield from _densenet()
    yield from _inception()
    yield from _xception()
    yield from _nasnet()
    yield from _convnext()


def stages(*last_layers: str, first: int = 1, stem: str = "") -> tuple[Stage, ...]:
    """A stem, if it has a name, then stages `first`, `first` + 1 … by their last layers."""
    numbered = [Stage(f"stage{k}", layer) for k, layer in enumerate(last_layers, start=first)]
    return (*([Stage("stem", stem)] if stem else []), *numbered)


def published(
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
        yield Backbone(
            name=name,
            constructor=f"VGG{depth}",
            mode="caffe",
            image_size=224,
            stages=stages(*(f"block{k}_pool" for k in range(1, 6))),
            imagenet=published(
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
        yield Backbone(
            name=name,
            constructor=f"ResNet{depth}",
            mode="caffe",
            image_size=224,
            stages=stages(*ends, first=2, stem="pool1_pool"),
            imagenet=published(
                f"{KERAS}/resnet",
                f"{name}_{NOTOP}",
                digest=digest,
                origin="Kaiming He and others, MIT",
            ),
        )


def _resnet_v2() -> Iterator[Backbone]:
    """Here the last block of conv2, conv3 and conv4 shrinks, so it opens the next stage."""
    for depth, blocks, digest in (
        (50, (3, 4, 6), "fac2f116257151a9d068a22e544a4917"),
        (101, (3, 4, 23), "c0ed64b8031c3730f411d2eb4eea35b5"),
        (152, (3, 8, 36), "ed17cf2e0169df9d443503ef94b23b33"),
    ):
        ends = [f"conv{k}_block{count - 1}_out" for k, count in enumerate(blocks, start=2)]
        yield Backbone(
            name=f"resnet{depth}_v2",
            constructor=f"ResNet{depth}V2",
            mode="tf",
            image_size=224,
            stages=stages(*ends, "post_relu", first=2, stem="pool1_pool"),
            imagenet=published(
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
        yield Backbone(
            name=name,
            constructor=f"DenseNet{depth}",
            mode="torch",
            image_size=224,
            stages=stages(*ends, "relu", first=2, stem="pool1"),
            imagenet=published(
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
        yield Backbone(
            name=name,
            constructor=constructor,
            mode="tf",
            image_size=299,
            minimal_size=75,
            stages=stages(*ends, first=3),
            imagenet=published(f"{KERAS}/{name}", f"{name}_{NOTOP}", digest=digest),
        )


def _xception() -> Iterator[Backbone]:
    """Its blocks end with sums that have no names of their own."""
    openers = ("block3_sepconv1_act", "block4_sepconv1_act", "block13_sepconv1_act")
    yield Backbone(
        name="xception",
        constructor="Xception",
        mode="tf",
        image_size=299,
        minimal_size=71,
        stages=(
            Stage("stem", "block1_conv2_act"),
            *(Stage(f"stage{k}", next_layer=layer) for k, layer in enumerate(openers, start=2)),
            Stage("stage5", "block14_sepconv2_act"),
        ),
        imagenet=published(
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
        yield Backbone(
            name=f"nasnet_{size}",
            constructor=f"NASNet{size.capitalize()}",
            mode="tf",
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
        yield Backbone(
            name=name,
            constructor="ConvNeXtXLarge" if size == "xlarge" else f"ConvNeXt{size.capitalize()}",
            arguments={"include_preprocessing": False},
            mode="torch",
            image_size=224,
            stages=(
                Stage("stem", f"{name}_stem"),
                *(
                    Stage(f"stage{k + 2}", next_layer=f"{name}_downsampling_block_{k}")
                    for k in range(3)
                ),
                Stage("stage5"),
            ),
            imagenet=published(
                f"{KERAS}/convnext",
                f"{name}_notop.h5",
                digest=digest,
                origin="Facebook Research, MIT",
            ),
        )
