"""ONNX in eight bits: calibrated on training pictures, in the shape that runs fastest.

Weights are rounded to 7 bits, one scale a channel. Processors without VNNI add two products of
8 × 8 bits in 16 bits, which would overflow; what the eighth bit is worth, they would spoil.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from keras_transfer.delivery.formats.answering import INPUT

_KINDS: Final = ["Conv", "MatMul", "Gemm", "MaxPool", "Add", "Relu", "Clip", "Concat"]
_BATCH_SIZE: Final = 4


def quantise(source: Path, target: Path, pictures: np.ndarray, *, scratch: Path) -> None:
    """Write the int8 form of an ONNX file, with quantising and dequantising nodes (QDQ).

    Args:
        pictures: uint8 [N, S, S, 3] of the training split; the ranges of all activations are
            taken from them.
    """
    prepared = scratch / "prepared.onnx"
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    model = onnx.load(prepared)
    share_strides(model)
    onnx.save(model, prepared)
    quantize_static(
        prepared,
        target,
        _Pictures(pictures),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=_KINDS,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_first_convolution(model),
    )


class _Pictures(CalibrationDataReader):
    """Pictures in the batches in which calibration asks for them."""

    def __init__(self, pictures: np.ndarray):
        self._batches: Iterator[np.ndarray] = (
            pictures[start : start + _BATCH_SIZE] for start in range(0, len(pictures), _BATCH_SIZE)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def share_strides(model: Any) -> None:
    """Take strides out of convolutions of 1 × 1 that all read one tensor: it is thinned out once.

    A pooling of 1 × 1 with their stride comes before them; answers stay the same to the bit. Left
    to itself OpenVINO does the same behind the quantisation, and then computes those convolutions
    in float32: a third of a ResNet50's time.
    """
    graph = model.graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for name, nodes in readers.items():
        strides = {tuple(_strides_of_a_point(node)) for node in nodes}
        if len(strides) != 1 or strides <= {(), (1, 1)}:
            continue
        thinned = f"{name}_thinned"
        pooling = onnx.helper.make_node(
            "MaxPool", [name], [thinned], thinned, kernel_shape=[1, 1], strides=[*strides.pop()]
        )
        graph.node.insert(min(list(graph.node).index(node) for node in nodes), pooling)
        for node in nodes:
            node.input[0] = thinned
            next(a for a in node.attribute if a.name == "strides").ints[:] = [1, 1]


def _strides_of_a_point(node: Any) -> list[int]:
    """The strides of a convolution of 1 × 1 without padding; nothing for any other node."""
    if node.op_type != "Conv":
        return []
    values = {a.name: list(a.ints) for a in node.attribute}
    is_point = values.get("kernel_shape") == [1, 1] and not any(values.get("pads", []))
    return values.get("strides", []) if is_point else []


def _first_convolution(model: Any) -> list[str]:
    """The name of the convolution that stands for `Preprocess`: pixels need all their digits."""
    return [next(node.name for node in model.graph.node if node.op_type == "Conv")]
