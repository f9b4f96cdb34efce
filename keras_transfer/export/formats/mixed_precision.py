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

from keras_transfer.errors import ExportError, enumerated

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
_ROUNDED: Final = ":rounded"
"""Ending of the names of outputs that nothing reads, as their layer is in float32."""


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
        """The model with these layers in float32: inputs and outputs are as in the whole one."""
        model = copy.deepcopy(self.model)
        graph, whole = model.graph, self.whole.graph
        originals = {node.name: node for node in whole.node}
        weights = {tensor.name: tensor for tensor in whole.initializer}
        outputs = {name for layer in layers for name in originals[layer].output}
        for node in graph.node:
            if node.name in layers:
                original = originals[node.name]
                del node.input[:], node.output[:]
                # A dequantising node may have the name of the weights.
                node.input.extend(name + _WHOLE * (name in weights) for name in original.input)
                node.output.extend(original.output)
            elif outputs.intersection(node.output):
                # A dequantising node has the name of the network's output.
                node.output[0] += _ROUNDED
        for tensor in weights.values():
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name += _WHOLE
        _remove_unread(graph)
        return model


def choose_layers(quantised: Quantised, source: "Source", *, input_name: str) -> Any:
    """The ONNX model of the fewest layers in float32 that is within the tolerance.

    Raises:
        ExportError: even all layers in float32 miss it.
    """
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
    chosen = quantised.with_float({*order[:count]})
    if not is_close(chosen):
        # The last line of the traceback is what the user reads.
        raise ExportError(
            f"even with {count} of {len(layers)} layers in float32 the mean score on images of the "
            f"run is more than {largest:.3g} below that of the network in float32"
        )
    named = enumerated([layer.rpartition("/")[2] for layer in order[:count]], 5)
    source.say(f"{count} of {len(layers)} layers stay in float32: {named}.")
    return chosen


def _fewest(most: int, is_enough: Callable[[int], bool]) -> int:
    """The smallest count from 1 to `most` that is enough, by bisection; `most` is not tried."""
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
