"""A trunk: one backbone's layers, cut after a stage, in one flat graph on the caller's input."""

from dataclasses import replace
from typing import Any

import keras

from keras_transfer.backbones.channels import carry_over, channels_in, describe_weights
from keras_transfer.backbones.combination import check_combination, check_sides
from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.backbones.record import Backbone, Stage, Trunk
from keras_transfer.backbones.sources import find_source
from keras_transfer.backbones.stages import kept_stages
from keras_transfer.backbones.weights import load_network, load_trunk
from keras_transfer.errors import SpecError
from keras_transfer.specs import COLOURS

__all__ = ["Trunk", "build_trunk", "copy_renamed", "last_tensor", "split_stages"]


def build_trunk(
    backbone: Backbone,
    inputs: keras.KerasTensor,
    *,
    last_stage: str = "",
    weights: str,
    channel_weights: str = "mean",
) -> Trunk:
    """Put the trunk on `inputs`, a `keras.Input` of raw pixels 0-255 `[B, S, S, C]`, usually RGB.

    `last_stage` is the last stage kept, '' keeps all. `weights` is as in `sources.find_source`;
    those of 'none' depend only on `keras.utils.set_random_seed`. Where the images have other
    channels than those of the weights, the first convolution is adapted as `channel_weights`
    says, see `channels`.

    Layers keep the names from the builder. The classes in `Backbone.leave_out` are left out: layers
    that scale the input, which `Preprocess` does, and the drop-connect of the EfficientNets,
    because the output of a frozen stage must depend on the image only.

    Raises SpecError for an unknown stage or too small images, WeightsError for weights that are
    missing or do not fit.
    """
    _check_size(backbone, inputs)
    if backbone.parts:
        check_combination(backbone, last_stage=last_stage, weights=weights)
        return _build_combination(
            backbone, inputs, weights=weights, channel_weights=channel_weights
        )
    if inputs.shape[-1] != backbone.channels:
        chosen = {"last_stage": last_stage, "weights": weights}
        return _build_adapted(backbone, inputs, channel_weights, **chosen)
    kept = kept_stages(backbone, last_stage)
    source = find_source(backbone, weights, last_stage=kept[-1].name)
    whole = len(kept) == len(backbone.stages) and not backbone.leave_out
    pixels = inputs if whole else keras.Input(inputs.shape[1:], dtype=inputs.dtype)
    network = _build_network(backbone, pixels)
    is_loaded = not source or load_network(network, source, backbone=backbone)
    flat = network if whole else _copy_part(network, backbone, last=kept[-1], inputs=inputs)
    trunk = Trunk(backbone, flat.output, split_stages(flat, kept))
    if source and not is_loaded:
        load_trunk(trunk, source)
    return trunk


def _build_adapted(
    backbone: Backbone, inputs: keras.KerasTensor, weighting: str, **chosen: str
) -> Trunk:
    """The trunk for images with other channels than those that its weights are for."""
    channels = inputs.shape[-1]
    rebuilt = replace(backbone, channels=channels)
    last = kept_stages(backbone, chosen["last_stage"])[-1]
    source = find_source(backbone, chosen["weights"], last_stage=last.name)
    if not source or channels_in(source) == channels:
        return build_trunk(rebuilt, inputs, **chosen)
    if backbone.channels != COLOURS:
        raise SpecError(
            f"{backbone.name} takes images with other channels",
            expected=f"data.channels={backbone.channels}; only weights for red, green and blue are "
            "adapted to others",
            received=f"data.channels={channels}",
            fix=f"set data.channels={backbone.channels}, or choose another model.backbone",
        )
    images = keras.Input((*inputs.shape[1:3], COLOURS), dtype=inputs.dtype)
    original = build_trunk(backbone, images, **chosen)
    trunk = build_trunk(rebuilt, inputs, **{**chosen, "weights": "none"})
    carry_over(original, trunk, channels=channels, weighting=weighting)
    notes = (*backbone.notes, describe_weights(channels, weighting))
    return replace(trunk, backbone=replace(trunk.backbone, notes=notes))


def _build_combination(
    backbone: Backbone, inputs: keras.KerasTensor, *, weights: str, channel_weights: str
) -> Trunk:
    """The trunks of all parts on the same input, and their feature maps concatenated."""
    maps: list[keras.KerasTensor] = []
    levels: list[list[keras.layers.Layer]] = [[] for _ in backbone.stages]
    for part in backbone.parts:
        images = keras.Input(inputs.shape[1:], dtype=inputs.dtype)
        trunk = build_trunk(part, images, weights=weights, channel_weights=channel_weights)
        copied = copy_renamed(keras.Model([images], trunk.output), inputs, prefix=f"{part.name}_")
        maps.append(copied.output)
        for level, layers in zip(levels[-len(trunk.stages) :], trunk.stages.values(), strict=True):
            level += [copied.get_layer(f"{part.name}_{layer.name}") for layer in layers]
    check_sides(backbone, maps)
    concatenate = keras.layers.Concatenate(name="concatenated")
    levels[-1].append(concatenate)
    stages = dict(zip(backbone.stage_names, map(tuple, levels), strict=True))
    return Trunk(backbone, concatenate(maps), stages)


def copy_renamed(network: keras.Model, inputs: keras.KerasTensor, *, prefix: str) -> keras.Model:
    """Copy a network onto the caller's input, with its weights and a prefix to its names."""

    def renamed(operation: Any) -> Any:
        config = {**operation.get_config(), "name": f"{prefix}{operation.name}"}
        return type(operation).from_config(config)

    copied = keras.models.clone_model(network, input_tensors=[inputs], clone_function=renamed)
    for layer in network.layers[1:]:
        copied.get_layer(f"{prefix}{layer.name}").set_weights(layer.get_weights())
    return copied


def _check_size(backbone: Backbone, inputs: keras.KerasTensor) -> None:
    """Raise SpecError if the images are smaller than the network takes."""
    sides = [side for side in inputs.shape[1:3] if side is not None]
    if sides and min(sides) < backbone.minimal_size:
        raise SpecError(
            f"data.image_size is too small for {backbone.name}",
            expected=f"{backbone.minimal_size} px or more",
            received=f"{min(sides)} px",
            fix=f"set data.image_size={backbone.minimal_size}, or choose another model.backbone",
        )


def last_tensor(network: keras.Model, stage: Stage) -> keras.KerasTensor:
    """The one tensor of the network through which later layers depend on the stage."""
    if stage.last_layer:
        # Not `get_layer`: sums and activations of `keras.ops` are no layers.
        return {one.name: one for one in network.operations}[stage.last_layer].output
    if stage.next_layer:
        return network.get_layer(stage.next_layer).input
    return network.output


def _build_network(backbone: Backbone, pixels: keras.KerasTensor) -> keras.Model:
    """The whole network with random weights, behind `Preprocess`."""
    scaled = Preprocess(backbone.preprocessing, name="preprocess")(pixels)
    return keras.Model(pixels, backbone.builder(scaled))


def _copy_part(
    network: keras.Model, backbone: Backbone, *, last: Stage, inputs: keras.KerasTensor
) -> keras.Model:
    """Copy the network up to a stage onto the caller's input, layers and weights.

    A copy, because layers keep references to every graph they are part of: a trunk cut out of the
    network itself would keep the layers above the cut in memory.
    """

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        skipped = type(layer).__name__ in backbone.leave_out
        return args[0] if skipped else layer(*args, **kwargs)

    part = keras.Model(network.inputs, last_tensor(network, last))
    flat = keras.models.clone_model(part, input_tensors=[inputs], call_function=call)
    for layer in flat.layers[1:]:
        layer.set_weights(part.get_layer(layer.name).get_weights())
    return flat


def split_stages(
    network: keras.Model, kept: tuple[Stage, ...]
) -> dict[str, tuple[keras.layers.Layer, ...]]:
    """Each layer to the lowest stage whose last tensor depends on it.

    The network ends with the last of `kept`. The input and `Preprocess` belong to no stage.
    """
    below = {
        id(layer)
        for layer in network.layers
        if isinstance(layer, (keras.layers.InputLayer, Preprocess))
    }
    split: dict[str, tuple[keras.layers.Layer, ...]] = {}
    for stage in kept:
        end = network.output if stage is kept[-1] else last_tensor(network, stage)
        reached = keras.Model(network.inputs, end).layers
        split[stage.name] = tuple(layer for layer in reached if id(layer) not in below)
        below.update(id(layer) for layer in reached)
    return split
