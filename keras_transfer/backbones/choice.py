"""The backbone of a run that names none: ResNet50, or EfficientNet-Lite0 without a network."""

from collections.abc import Callable, Mapping
from typing import Final

from keras_transfer.backbones.registry import get_backbone
from keras_transfer.backbones.sources import PublishedWeights
from keras_transfer.config import override
from keras_transfer.specs import RunSpec

FIRST: Final = "resnet50"
OFFLINE: Final = "efficientnet_lite0"
"""Its ImageNet weights are installed together with this package."""

_FIELDS: Final = ("model.backbone", "model.weights", "model.last_stage")


def choose_backbone(
    spec: RunSpec, given: Mapping[str, object], say: Callable[[str], None]
) -> RunSpec:
    """The spec with a backbone whose ImageNet weights can be had, unless its model was given.

    Args:
        given: dotted fields that the user has set.
        say: gets the choice and its reason, in a sentence.
    """
    if any(field in given for field in _FIELDS):
        return spec
    weights = get_backbone(FIRST).weights["imagenet"]
    assert isinstance(weights, PublishedWeights)
    if cause := weights.unavailable():
        say(
            f"The backbone is {OFFLINE}, whose ImageNet weights are installed with this package: "
            f"those of {FIRST} are not on this machine and cannot be downloaded. Set "
            f"model.backbone to choose another. (The download failed: {cause}.)"
        )
        return override(spec, {"model.backbone": OFFLINE})
    say(f"The backbone is {FIRST} with ImageNet weights. Set model.backbone to choose another.")
    return override(spec, {"model.backbone": FIRST})
