"""The record of a backbone: its properties before it is built.

A new backbone is one `Backbone` in the registry. Its layers come from any function that puts them
on a tensor; `applications.Application` is one for networks of `keras.applications`. The module
needs the standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from keras_transfer.specs import COLOURS

if TYPE_CHECKING:
    from pathlib import Path

    import keras


class Stage(NamedTuple):
    """The rule for one stage: it ends with a tensor on which all later layers depend.

    That tensor is the output of `last_layer`; or the input of `next_layer`, where the layer before
    it gets another number in every build; or, with neither, the output of the trunk.
    """

    name: str
    last_layer: str = ""
    next_layer: str = ""


class WeightSource(Protocol):
    """A source of a backbone's weights: a download, an installed package, a shared disk."""

    @property
    def origin(self) -> str:
        """Author and licence of the weights."""

    def find(self, backbone: Backbone) -> Path:
        """The file of the whole network: `.weights.h5`, `.h5`, `.keras`, `.npz` or `.pth`.

        Raises WeightsError, within seconds, if there is none.
        """

    def local(self) -> Path | None:
        """The same file, unchecked, if it is on this machine without a download; else None."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One row of the registry."""

    name: str
    builder: Callable[[keras.KerasTensor], keras.KerasTensor]
    """Puts all layers of the network, with random weights, on scaled images `[B, S, S, C]` and
    returns their feature map. The layers are one flat graph, with no model inside another."""
    preprocessing: str
    """The mode of `Preprocess`, which scales raw pixels for the builder's layers: see `MODES`."""
    image_size: int
    """Side of the images it was trained on, px."""
    minimal_size: int = 32
    """Side of the smallest image it takes, px."""
    channels: int = COLOURS
    """Channels of the images it was trained on; see `channels` for images with others."""
    stages: tuple[Stage, ...]
    """From bottom to top; together they have every variable of the trunk once."""
    weights: Mapping[str, WeightSource] = field(default_factory=dict)
    """Values of `model.weights` that name weights of this backbone, such as 'imagenet'."""
    leave_out: tuple[str, ...] = ()
    """Class names of the builder's layers that the trunk leaves out."""
    notes: tuple[str, ...] = ()
    """Sentences for the user on how a model file was read."""
    parts: tuple[Backbone, ...] = ()
    """Of a combination the backbones whose feature maps it concatenates: see `combination`."""

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, from bottom to top."""
        return tuple(stage.name for stage in self.stages)


@dataclass(frozen=True)
class Trunk:
    """A backbone's layers in the graph of the caller's input.

    `output` is the feature map `[B, side, side, channels]` of the last kept stage. `stages` maps
    each kept stage, from bottom to top, to its layers in the order of the graph; the input and
    `Preprocess` have no variables and belong to none. `added` are the names of layers among them
    that a method added: see `backbones.adapters`.
    """

    backbone: Backbone
    output: keras.KerasTensor
    stages: Mapping[str, tuple[keras.layers.Layer, ...]]
    added: tuple[str, ...] = ()

    @property
    def last_stage(self) -> str:
        """The stage the trunk is cut after."""
        return list(self.stages)[-1]

    @property
    def num_parameters(self) -> int:
        """Of all stages."""
        return sum(layer.count_params() for layer in self.layers)

    @property
    def layers(self) -> tuple[keras.layers.Layer, ...]:
        """The layers of all stages, from bottom to top."""
        return tuple(layer for layers in self.stages.values() for layer in layers)
