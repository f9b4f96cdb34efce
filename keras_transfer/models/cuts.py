"""Cuts: the one tensor below which nothing changes while a phase trains.

Whatever lies below it is a pure function of a view, so its outputs can be computed once and
stored; whatever lies above it is the tail, which trains. The rule knows no family and no stage
names: frozen layers go below the cut, anything that learns or is random goes above it.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np

from keras_transfer.devices.strategy import scope

_NOT_CONTENT = ("name", "dtype", "trainable", "seed")
_ONLY_BEFORE_TRAINING = ("_initializer", "_regularizer", "_constraint")


@dataclass(frozen=True)
class Cut:
    """A tensor of a classifier's graph through which all above it depends on the image.

    `name` is that of the layer it comes from, `shape` that of one image's activations.
    """

    model: keras.Model
    tensor: keras.KerasTensor
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's activations, without the batch."""
        return tuple(self.tensor.shape[1:])

    @property
    def num_values(self) -> int:
        """Numbers to be stored for each view."""
        return int(np.prod(self.shape))

    def tail(self) -> keras.Model:
        """From stored activations to logits, over the layers of the classifier itself."""
        with scope():
            return keras.Model(self.tensor, self.model.output, name=self.model.name)

    @cached_property
    def variables(self) -> list[keras.Variable]:
        """All that the activations depend on beside the image."""
        variables: list[keras.Variable] = self._below.variables
        return variables

    @cached_property
    def _below(self) -> keras.Model:
        return keras.Model(self.model.input, self.tensor)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything below: graph, settings and weights, but no names of layers.

        Taken at the first call: ask before anything below the cut may change.
        """
        return fingerprint(self._below)


def find_cut(model: keras.Model) -> Cut | None:
    """The best cut for training `model` with its present `trainable` flags.

    Of the tensors that qualify it is one of those above the last frozen weights, so that no
    frozen layer with weights is left to run again; among these the smallest, and the highest of
    equally small ones.

    Returns:
        None where nothing with weights lies below any cut: then there is nothing to save.
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


def _walk(model: keras.Model) -> Iterator[tuple[int, Any, bool]]:
    """Operations from the input up, and whether all above each hangs on its output alone.

    Keras sorts them by depth, so every ancestor of a bridge comes before it.
    """
    operations = list(model.operations)
    producer = {
        id(tensor): number
        for number, operation in enumerate(operations)
        for tensor in keras.tree.flatten(operation.output)
    }
    last_use = list(range(len(operations)))
    for number, operation in enumerate(operations):
        for tensor in keras.tree.flatten(operation.input):
            if id(tensor) in producer:
                last_use[producer[id(tensor)]] = number
    open_until = 0
    for number, operation in enumerate(operations[:-1]):
        yield number, operation, open_until <= number
        open_until = max(open_until, last_use[number])


def _changes(operation: Any) -> bool:
    """Whether it learns, or draws random numbers in training: those are a variable as well."""
    variables = getattr(operation, "variables", ())
    return any(variable.trainable or is_random_state(variable) for variable in variables)


def is_random_state(variable: keras.Variable) -> bool:
    """Whether it is the state of a random generator, which is set anew every epoch."""
    return "int" in variable.dtype


def fingerprint(model: keras.Model) -> str:
    """A hash of a flat model's graph, settings and weights, whatever its layers are called."""
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
    """What a layer computes, without its name and what only matters before or in training."""
    if not isinstance(operation, keras.layers.Layer):
        return {}
    return {
        name: value
        for name, value in operation.get_config().items()
        if name not in _NOT_CONTENT and not name.endswith(_ONLY_BEFORE_TRAINING)
    }
