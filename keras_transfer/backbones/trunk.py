"""A trunk: one backbone's layers, cut after a stage, in one flat graph on the caller's input."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import keras

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.backbones.registry import Backbone
from keras_transfer.errors import SpecError, WeightsError


@dataclass(frozen=True)
class Trunk:
    """A trunk on the caller's input.

    `output` is the feature map `[B, side, side, channels]` of the last kept stage. `stages` maps
    each kept stage, from bottom to top, to its layers; the input and `Preprocess` are in none.
    """

    backbone: Backbone
    output: keras.KerasTensor
    stages: Mapping[str, tuple[keras.layers.Layer, ...]]


def build_trunk(
    backbone: Backbone, inputs: keras.KerasTensor, *, last_stage: str = "", weights: str
) -> Trunk:
    """Put the trunk on `inputs` (`keras.Input`, `[B, S, S, 3]`, raw RGB 0-255).

    `last_stage` is the last stage kept, '' keeps all; layers above it are not built into the
    graph. Layers keep their Keras names. Random weights depend on
    `keras.utils.set_random_seed` alone.

    Raises SpecError for an unknown stage or pictures that are too small.
    """
    check_size(backbone, inputs)
    kept = kept_stages(backbone, last_stage)
    if weights != "none":
        raise WeightsError(f"model.weights={weights} cannot be loaded yet")
    private = keras.Input(inputs.shape[1:], dtype=inputs.dtype)
    constructor = getattr(keras.applications, backbone.constructor)
    network = constructor(
        include_top=False,
        weights=None,
        input_tensor=Preprocess(backbone.mode, name="preprocess")(private),
        **backbone.arguments,
    )
    part = keras.Model(private, network.get_layer(backbone.stages[len(kept) - 1].last_layer).output)
    # A copy, because layers remember everything that was ever built on them: without it the
    # stages above the cut would stay in memory.
    flat = keras.models.clone_model(part, input_tensors=inputs)
    flat.set_weights(part.get_weights())
    return Trunk(backbone, flat.outputs[0], split_stages(backbone, flat, kept))


def kept_stages(backbone: Backbone, last_stage: str) -> tuple[str, ...]:
    """Names of the stages up to `last_stage`, SpecError if there is no such stage."""
    names = backbone.stage_names
    if last_stage in ("", names[-1]):
        return names
    if last_stage in names:
        return names[: names.index(last_stage) + 1]
    nearest = difflib.get_close_matches(last_stage, names, n=1, cutoff=0.0)
    raise SpecError(
        f"model.last_stage: {backbone.name} has no stage '{last_stage}'",
        expected=f"one of {', '.join(names)}, or '' for the whole trunk",
        received=repr(last_stage),
        fix=f"did you mean '{nearest[0]}'?" if nearest else "leave it empty",
    )


def check_size(backbone: Backbone, inputs: keras.KerasTensor) -> None:
    """Raise SpecError if the pictures are smaller than the network can take."""
    side = min(size for size in inputs.shape[1:3] if size is not None)
    if side < backbone.minimal_size:
        raise SpecError(
            f"data.image_size is too small for {backbone.name}",
            expected=f"at least {backbone.minimal_size} px",
            received=f"{side} px",
            fix=f"set data.image_size={backbone.minimal_size} or more",
        )


def split_stages(
    backbone: Backbone, flat: keras.Model, kept: tuple[str, ...]
) -> dict[str, tuple[keras.layers.Layer, ...]]:
    """Each layer of the flat graph goes to the lowest stage whose cut depends on it."""
    stages: dict[str, tuple[keras.layers.Layer, ...]] = {}
    below = {layer.name for layer in flat.layers[:2]}
    for stage in backbone.stages[: len(kept)]:
        part = keras.Model(flat.inputs, flat.get_layer(stage.last_layer).output)
        stages[stage.name] = tuple(layer for layer in part.layers if layer.name not in below)
        below |= {layer.name for layer in part.layers}
    return stages
