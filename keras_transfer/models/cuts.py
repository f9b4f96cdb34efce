"""Cuts: the tensor below which nothing changes while a phase trains.

Everything below it is a pure function of a view, so its outputs can be computed once and cached;
everything above it is the tail, which trains. The rule does not depend on families or names of
stages: frozen layers are below the cut, all that is trained or random is above it.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import keras
import numpy as np

from keras_transfer.backbones.graph import calls_of, find_bridges, is_random_state
from keras_transfer.devices.strategy import scope

_NOT_CONTENT = ("name", "dtype", "trainable", "seed")
_ONLY_BEFORE_TRAINING = ("_initializer", "_regularizer", "_constraint")


@dataclass(frozen=True)
class Cut:
    """A tensor of a classifier's graph; all layers above depend on the image through it alone.

    `name` is that of the layer it comes from, `shape` that of one image's activations. `parts` are
    cuts whose values, one behind the other, are those of this one; without any it is stored whole.
    """

    model: keras.Model
    tensor: keras.KerasTensor
    name: str
    parts: "tuple[Cut, ...]" = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's activations, without the batch."""
        return tuple(self.tensor.shape[1:])

    @property
    def num_values(self) -> int:
        """Number of values to store for each view."""
        return int(np.prod(self.shape))

    @property
    def stored(self) -> "tuple[Cut, ...]":
        """The cuts whose values are stored: its parts, or itself if it has none."""
        return self.parts or (self,)

    def tail(self) -> keras.Model:
        """A model from cached activations to logits that shares the classifier's layers."""
        with scope():
            return keras.Model(self.tensor, self.model.output, name=self.model.name)

    @cached_property
    def variables(self) -> list[keras.Variable]:
        """The variables that the activations depend on."""
        variables: list[keras.Variable] = self._below.variables
        return variables

    @cached_property
    def _below(self) -> keras.Model:
        return keras.Model(self.model.input, self.tensor)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything below the cut: graph, settings and weights, but no names of layers.

        It is computed at the first call, which must come before anything below the cut changes.
        """
        return fingerprint(self._below)


def find_cut(model: keras.Model) -> Cut | None:
    """The best cut for training `model` with its present `trainable` flags.

    Only tensors above the last frozen weights are considered, so that no frozen layer with weights
    runs again. Of these it is the smallest, and of equally small ones the highest.

    Returns:
        None where no weights are below any cut: then there is nothing to save.
    """
    bridges: list[tuple[int, keras.KerasTensor, str]] = []
    weights_at: list[int] = []
    for number, operation, is_bridge in _walk(model):
        if _changes(operation):
            break
        if getattr(operation, "variables", ()):
            weights_at.append(number)
        if is_bridge and weights_at:
            bridges.append((number, operation.output, operation.name))
    if not bridges:
        return None
    highest = bridges[-1][0]
    floor = max(number for number in weights_at if number <= highest)
    level = [bridge for bridge in bridges if bridge[0] >= floor]
    _, tensor, name = min(reversed(level), key=lambda bridge: np.prod(bridge[1].shape[1:]))
    return Cut(model, tensor, name)


def split_cut(cut: Cut, names: Sequence[str]) -> Cut:
    """The cut of a combination of networks with a part for each network, if it is pooled.

    Pooled features of a concatenation are those of each network. So a part has the fingerprint of
    the network alone, and the features of that are shared.
    """
    made = {id(operation.output): operation for operation in cut.model.operations}
    pooling = made[id(cut.tensor)]
    if not isinstance(pooling, keras.layers.GlobalAveragePooling2D):
        return cut
    maps = made[id(pooling.input)].input
    parts = [
        Cut(cut.model, _copy(pooling, f"{pooling.name}_{name}")(one), f"{pooling.name} of {name}")
        for name, one in zip(names, maps, strict=True)
    ]
    return replace(cut, parts=tuple(parts))


def _copy(layer: keras.layers.Layer, name: str) -> keras.layers.Layer:
    return type(layer).from_config({**layer.get_config(), "name": name})


def _walk(model: keras.Model) -> Iterator[tuple[int, Any, bool]]:
    """Operations from the input up, and whether all above depend on the output of each alone.

    Keras sorts them by depth, so every ancestor of a bridge comes before it.
    """
    calls = calls_of(model)
    for number, is_bridge in enumerate(find_bridges(calls)[:-1]):
        yield number, calls[number].operation, is_bridge


def _changes(operation: Any) -> bool:
    """Whether it is trained, or draws random numbers in training (their state is a variable)."""
    variables = getattr(operation, "variables", ())
    return any(variable.trainable or is_random_state(variable) for variable in variables)


def fingerprint(model: keras.Model) -> str:
    """A hash of a flat model's graph, settings and weights, without the names of its layers."""
    digest = hashlib.blake2b(digest_size=16)
    number = {id(op.output): n for n, op in enumerate(model.operations)}
    for operation in model.operations:
        inputs = [number.get(id(tensor), -1) for tensor in keras.tree.flatten(operation.input)]
        described = [type(operation).__name__, inputs, _settings(operation)]
        digest.update(json.dumps(described, sort_keys=True, default=str).encode())
        for variable in getattr(operation, "variables", ()):
            if is_random_state(variable):
                continue
            values = np.ascontiguousarray(variable)
            digest.update(f"{values.dtype}{values.shape}".encode())
            digest.update(values.data)
    return digest.hexdigest()


def _settings(operation: Any) -> dict[str, Any]:
    """The configuration of a layer, without its name and settings that only affect training."""
    if not isinstance(operation, keras.layers.Layer):
        return {}
    return {
        name: value
        for name, value in operation.get_config().items()
        if name not in _NOT_CONTENT and not name.endswith(_ONLY_BEFORE_TRAINING)
    }
