"""The graph of a network: its operations in order, and the tensors that all else passes through."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras


class Call(NamedTuple):
    """One operation of a graph, with the tensors that it reads and makes."""

    operation: Any
    reads: Sequence[keras.KerasTensor]
    makes: Sequence[keras.KerasTensor]


def calls_of(model: keras.Model) -> list[Call]:
    """The operations of a model whose layers are all called once."""
    return [Call(op, *map(keras.tree.flatten, (op.input, op.output))) for op in model.operations]


def traced(part: keras.Model) -> tuple[keras.Model, list[Call]]:
    """A new graph of the same layers, and their calls in it."""
    calls: list[Call] = []

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        result = layer(*args, **kwargs)
        calls.append(Call(layer, *map(keras.tree.flatten, (args, result))))
        return result

    # A part that starts inside the classifier has tensors of its own, unlike `layer.input`. Of a
    # compiled model Keras would copy the metrics as well, which need not be registered.
    plain = keras.Model(part.input, part.output)
    graph = keras.models.clone_model(plain, clone_function=lambda layer: layer, call_function=call)
    return graph, calls


def find_bridges(calls: Sequence[Call]) -> list[bool]:
    """Whether all later calls depend on the earlier ones through the tensor of this call alone.

    The calls are sorted from the input up, so that each comes after those whose tensors it reads;
    the input is one of them. Keras sorts operations by depth, which keeps this order.
    """
    producer = {id(tensor): number for number, call in enumerate(calls) for tensor in call.makes}
    last_use = list(range(len(calls)))
    for number, call in enumerate(calls):
        for tensor in call.reads:
            if id(tensor) in producer:
                last_use[producer[id(tensor)]] = number
    bridges, open_until = [], 0
    for number, last in enumerate(last_use):
        bridges.append(open_until <= number)
        open_until = max(open_until, last)
    return bridges


def bridges(images: keras.KerasTensor, calls: Sequence[Call]) -> Iterator[tuple[int, Call]]:
    """The calls with one output through which all later ones depend on the images."""
    found = find_bridges([Call(None, (), (images,)), *calls])[1:]
    for number, (call, is_bridge) in enumerate(zip(calls, found, strict=True)):
        if is_bridge and len(call.makes) == 1:
            yield number, call


def weights_of(call: Call) -> list[keras.Variable]:
    """The variables of an operation; Normalization counts as having constants."""
    if isinstance(call.operation, keras.layers.Normalization):
        return []
    return getattr(call.operation, "weights", [])


def is_random_state(variable: keras.Variable) -> bool:
    """Whether it is the state of a random generator, which is reset in every epoch."""
    return "int" in variable.dtype


def only_draws(layer: keras.layers.Layer) -> bool:
    """Whether its only variable is the state of a random generator, as in dropout."""
    return bool(layer.variables) and all(map(is_random_state, layer.variables))
