"""The table of backbones: what to call, what it eats, and where it can be cut.

Stages are named by how far the picture has shrunk: `stage k` ends with the last layer at 1/2^k of
the input's side, and `stem`, where there is one, is what comes before the first block. So
`stage3` means the same in every family, whatever the paper called it.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from keras_transfer.backbones.preprocess import Mode
from keras_transfer.errors import SpecError


class Stage(NamedTuple):
    """A named stretch of a trunk, ending with the output of one explicitly named layer."""

    name: str
    last_layer: str


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One row of the table."""

    name: str
    constructor: str
    """Name of the callable in `keras.applications`."""
    arguments: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    mode: Mode
    image_size: int
    """Side of the ImageNet pictures it was trained on, px."""
    minimal_size: int
    stages: tuple[Stage, ...]
    """From bottom to top; together they hold every variable of the trunk once."""

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, from bottom to top."""
        return tuple(stage.name for stage in self.stages)


VGG16 = tuple(Stage(f"stage{k}", f"block{k}_pool") for k in range(1, 6))
RESNET50 = (
    Stage("stem", "pool1_pool"),
    Stage("stage2", "conv2_block3_out"),
    Stage("stage3", "conv3_block4_out"),
    Stage("stage4", "conv4_block6_out"),
    Stage("stage5", "conv5_block3_out"),
)

_ROWS = (
    Backbone(
        name="vgg16",
        constructor="VGG16",
        mode="caffe",
        image_size=224,
        minimal_size=32,
        stages=VGG16,
    ),
    Backbone(
        name="resnet50",
        constructor="ResNet50",
        mode="caffe",
        image_size=224,
        minimal_size=32,
        stages=RESNET50,
    ),
)
BACKBONES: dict[str, Backbone] = {row.name: row for row in _ROWS}


def get_backbone(name: str) -> Backbone:
    """The row of that name; SpecError with the nearest names if there is none."""
    if name in BACKBONES:
        return BACKBONES[name]
    nearest = difflib.get_close_matches(name, BACKBONES, n=3, cutoff=0.4)
    raise SpecError(
        f"model.backbone: there is no backbone '{name}'",
        expected=f"one of {', '.join(BACKBONES)}",
        received=repr(name),
        fix=f"did you mean {' or '.join(nearest)}?" if nearest else "choose one of those names",
    )
