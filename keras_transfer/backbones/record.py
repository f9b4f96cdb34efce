"""What is known about one backbone before any of it is built. The standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import keras

Mode = Literal["caffe", "tf", "torch", "none"]


class Stage(NamedTuple):
    """A named stretch of a trunk, from the end of the stage below to one tensor.

    That tensor is the output of `last_layer`; or the input of `next_layer`, where Keras numbers
    the layer before it anew in every build; or, with neither, the output of the trunk. Whatever
    comes later depends on the stage through that tensor alone.
    """

    name: str
    last_layer: str = ""
    next_layer: str = ""


class PublishedWeights(NamedTuple):
    """The ImageNet weights that Keras offers for a trunk, without the classification layers."""

    url: str
    file: str
    """Name of the file in Keras's cache."""
    digest: str
    """MD5 (32 digits) or SHA-256 (64) of the file as Keras states it, '' where it states none."""
    origin: str
    """Who trained them, and the licence they were published under."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One row of the table of backbones."""

    name: str
    constructor: str
    """Name of the callable in `keras.applications`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the constructor needs beside the usual."""
    mode: Mode
    """What `Preprocess` does to the pixels."""
    image_size: int
    """Side of the images it was trained on, px."""
    minimal_size: int = 32
    """Side of the smallest image it takes, px."""
    stages: tuple[Stage, ...]
    """From bottom to top; together they hold every variable of the trunk once."""
    imagenet: PublishedWeights
    leave_out: tuple[str, ...] = ()
    """Kinds of layers in Keras's network that the trunk does without."""

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, from bottom to top."""
        return tuple(stage.name for stage in self.stages)


@dataclass(frozen=True)
class Trunk:
    """A backbone's layers in the graph of the caller's input.

    `output` is the feature map `[B, side, side, channels]` of the last kept stage. `stages` maps
    each kept stage, from bottom to top, to its layers in the order of the graph; the input and
    `Preprocess` have no variables and belong to none.
    """

    backbone: Backbone
    output: keras.KerasTensor
    stages: Mapping[str, tuple[keras.layers.Layer, ...]]

    @property
    def last_stage(self) -> str:
        """The stage the trunk is cut after."""
        return list(self.stages)[-1]

    @property
    def layers(self) -> tuple[keras.layers.Layer, ...]:
        """The layers of all stages, from bottom to top."""
        return tuple(layer for layers in self.stages.values() for layer in layers)
