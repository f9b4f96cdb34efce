"""Several backbones side by side: each reads the images, and their feature maps are concatenated.

`model.backbone=efficientnet_lite0+efficientnet_lite1` is one. The head gets the features of all
parts, so that what one network misses another may tell. It costs the time and memory of all parts.
Importing this module needs the standard library only.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from keras_transfer.backbones.record import Backbone, Stage
from keras_transfer.errors import SpecError, WeightsError

if TYPE_CHECKING:
    import keras

SEPARATOR: Final = "+"
"""Between the names of the parts."""


def combine(name: str, find: Callable[[str], Backbone]) -> Backbone:
    """The combination of the backbones whose names are in `name`; `find` gives each of them.

    Its stages have the names of those of the part with the most, counted from the top: the last
    stage has the last stage of every part.

    Raises:
        SpecError: a name is given twice, or not known.
    """
    names = name.split(SEPARATOR)
    if len(set(names)) < len(names):
        raise SpecError(
            f"model.backbone={name} has a backbone twice",
            expected="different backbones",
            received=", ".join(names),
            fix=f"set model.backbone={SEPARATOR.join(dict.fromkeys(names))}",
        )
    parts = tuple(map(find, names))
    stages = max((part.stage_names for part in parts), key=len)
    return Backbone(
        name=name,
        builder=_no_builder,
        preprocessing="none",
        image_size=max(part.image_size for part in parts),
        minimal_size=max(part.minimal_size for part in parts),
        stages=tuple(Stage(stage) for stage in stages),
        parts=parts,
    )


def _no_builder(images: "keras.KerasTensor") -> "keras.KerasTensor":
    """Each part is built by itself, with its weights."""
    raise NotImplementedError


def check_combination(backbone: Backbone, *, last_stage: str, weights: str) -> None:
    """Check what a combination is built with.

    Raises:
        SpecError: it is to be cut after a stage.
        WeightsError: the weights are a file, which has those of one network only.
    """
    if last_stage not in ("", backbone.stage_names[-1]):
        raise SpecError(
            "model.last_stage cannot cut a combination of backbones",
            expected="no model.last_stage",
            received=last_stage,
            fix="leave it out, or choose a single model.backbone",
        )
    names = set.intersection(*(set(part.weights) for part in backbone.parts)) | {"none"}
    if weights not in names:
        raise WeightsError(
            f"model.weights names no weights that all parts of {backbone.name} have",
            expected=" or ".join(sorted(names)),
            received=weights,
            fix=f"set model.weights={min(names)}, or choose a single model.backbone",
        )


def check_sides(backbone: Backbone, maps: "Sequence[keras.KerasTensor]") -> None:
    """Raise SpecError if the feature maps of the parts differ in size."""
    sides = [tuple(tensor.shape[1:3]) for tensor in maps]
    if len(set(sides)) > 1:
        described = zip(backbone.parts, sides, strict=True)
        raise SpecError(
            f"the feature maps of {backbone.name} differ in size",
            expected="backbones whose feature maps have the same height and width",
            received=", ".join(f"{part.name}: {side[0]} x {side[1]}" for part, side in described),
            fix="choose other backbones, or another data.image_size",
        )
