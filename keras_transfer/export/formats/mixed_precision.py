"""Chooses the layers of an ONNX network that stay in float32, where eight bits would cost too much.

The network in eight bits is kept where its score on images of the run is within the tolerance.
Otherwise each layer is put into eight bits alone, and the layers are sorted by how far that moves
the outputs. Of those that move them farthest as few stay in float32 as bring the score within the
tolerance, found by bisection.
"""

import copy
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from keras_transfer.errors import enumerated

if TYPE_CHECKING:
    from keras_transfer.export.formats.source import Source

TOLERANCE: Final = 0.01
"""Largest loss of the mean example score: one point of an accuracy, of other scores one percent."""
_NUM_IMAGES: Final = 32
"""Images on which each layer's own effect is measured."""
_BATCH_SIZE: Final = 16
_ROUNDING: Final = ("QuantizeLinear", "DequantizeLinear")
_WHOLE: Final = ":float32"
"""Ending of the names of weights that are read in float32."""


@dataclass(frozen=True, eq=False)
class Quantised:
    """An ONNX model with quantising and dequantising nodes, and the same model in float32."""

    model: Any
    whole: Any

    @cached_property
    def layers(self) -> list[str]:
        """The names of the nodes that read rounded values."""
        nodes = self.model.graph.node
        rounded = {node.output[0] for node in nodes if node.op_type == _ROUNDING[1]}
        return [
            node.name
            for node in nodes
            if node.op_type not in _ROUNDING and rounded.intersection(node.input)
        ]

    def with_float(self, layers: AbstractSet[str]) -> Any:
        """The model with these layers in float32: they read what they read in the whole one."""
        model = copy.deepcopy(self.model)
        graph, whole = model.graph, self.whole.graph
        originals = {node.name: node for node in whole.node}
        weights = {tensor.name: tensor for tensor in whole.initializer}
        for node in graph.node:
            if node.name in layers:
                inputs = originals[node.name].input
                del node.input[:]
                # A dequantising node may have the name of the weights.
                node.input.extend(name + _WHOLE * (name in weights) for name in inputs)
        for tensor in weights.values():
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name += _WHOLE
        _remove_unread(graph)
        return model


def choose_layers(quantised: Quantised, source: "Source", *, input_name: str) -> Any:
    """The ONNX model of the fewest layers in float32 that is within the tolerance."""
    pixels, values = source.validation
    task = source.contract.restored_task

    def run(model: Any, images: np.ndarray) -> np.ndarray:
        return _run(model, images, input_name)

    before = task.example_scores(values, run(quantised.whole, pixels))
    largest = TOLERANCE * (1 if task.monitor.is_share else abs(float(before.mean())))

    def is_close(model: Any) -> bool:
        loss = before - task.example_scores(values, run(model, pixels))
        return bool(loss.mean() <= largest)

    if is_close(quantised.model):
        source.say("No layer has to stay in float32.")
        return quantised.model
    few = source.images[:_NUM_IMAGES]
    whole, layers = run(quantised.whole, few), quantised.layers
    moved = {
        layer: float(np.square(run(quantised.with_float({*layers} - {layer}), few) - whole).mean())
        for layer in layers
    }
    order = sorted(layers, key=lambda layer: -moved[layer])
    count = _fewest(len(layers), lambda count: is_close(quantised.with_float({*order[:count]})))
    named = enumerated([layer.rpartition("/")[2] for layer in order[:count]], 5)
    source.say(f"{count} of {len(layers)} layers stay in float32: {named}.")
    return quantised.with_float({*order[:count]})


def _fewest(most: int, is_enough: Callable[[int], bool]) -> int:
    """The smallest count from 1 to `most`, which is enough, by bisection."""
    low = 0
    while most - low > 1:
        middle = (low + most) // 2
        low, most = (low, middle) if is_enough(middle) else (middle, most)
    return most


def _run(model: Any, images: np.ndarray, input_name: str) -> np.ndarray:
    """Outputs float32 [N, K]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    starts = range(0, len(images), _BATCH_SIZE)
    batches = (images[start : start + _BATCH_SIZE] for start in starts)
    return np.concatenate([session.run(None, {input_name: batch})[0] for batch in batches])


def _remove_unread(graph: Any) -> None:
    """Remove nodes and weights that nothing reads."""
    read = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            nodes.append(node)
            read.update(node.input)
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(weights)
