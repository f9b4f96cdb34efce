"""One function for each kind of file: the answering graph goes in, a file comes out.

Each file remembers the hash of the classes it answers with: an ONNX file in its metadata, an
OpenVINO model in its runtime information, a LiteRT file in a contract.json packed behind the model,
where its tools look for label files too (`unzip -p model.tflite contract.json`).

The network as one graph from pixels to probabilities, in the shape that converters like best.

ONNX in eight bits: calibrated on training images, in the shape that runs fastest.

Weights are rounded to 7 bits, one scale a channel. Processors without VNNI add two products of
8 × 8 bits in 16 bits, which would overflow; what the eighth bit is worth, they would spoil.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import onnx
import tensorflow as tf
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.models.folding import fold

INPUT: Final = "pixels"
OUTPUT: Final = "probabilities"


def answering(model: keras.Model) -> Any:
    """One concrete function of constants: uint8 [B, S, S, 3] to float32 [B, C], B open.

    Batch normalisation is folded into convolutions. `Preprocess` becomes one convolution of 1 × 1:
    that is all it does to a pixel, and slices and concatenations of channels cost more than
    their arithmetic.
    """
    folded = fold(model)
    preprocess = next(layer for layer in folded.layers if isinstance(layer, Preprocess))
    network = keras.Model(preprocess.output, folded.output)
    kernel, bias = _affine(preprocess)
    size = model.input.shape[1]

    def answer(pixels: tf.Tensor) -> tf.Tensor:
        scaled = tf.nn.conv2d(tf.cast(pixels, tf.float32), kernel, 1, "VALID") + bias
        logits = tf.cast(network(scaled, training=False), tf.float32)
        return tf.identity(tf.nn.softmax(logits), name=OUTPUT)

    signature = tf.TensorSpec([None, size, size, 3], tf.uint8, name=INPUT)
    traced = tf.function(answer, autograph=False).get_concrete_function(signature)
    return convert_variables_to_constants_v2(traced)


def _affine(preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """What it does to a pixel, as x @ kernel + bias: float32 [1, 1, 3, 3] and [3]."""
    corners = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3)]).astype(np.float32)
    shown = keras.ops.convert_to_numpy(preprocess(corners.reshape(4, 1, 1, 3))).reshape(4, 3)
    bias = shown[0].astype(np.float64)
    kernel = (shown[1:] - bias) / 255
    return kernel.reshape(1, 1, 3, 3).astype(np.float32), bias.astype(np.float32)


_KINDS: Final = ["Conv", "MatMul", "Gemm", "MaxPool", "Add", "Relu", "Clip", "Concat"]
_BATCH_SIZE: Final = 4


def quantise(source: Path, target: Path, images: np.ndarray, *, scratch: Path) -> None:
    """Write the int8 form of an ONNX file, with quantising and dequantising nodes (QDQ).

    Args:
        images: uint8 [N, S, S, 3] of the training split; the ranges of all activations are
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
        _Images(images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=_KINDS,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_first_convolution(model),
    )


class _Images(CalibrationDataReader):
    """Images in the batches in which calibration asks for them."""

    def __init__(self, images: np.ndarray):
        self._batches: Iterator[np.ndarray] = (
            images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE)
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


CLASS_HASH: Final = "class_hash"
PACKED: Final = ("contract.json", "class_names.json", "labels.txt")
_OPSET: Final = 17


def write_onnx(graph: Any, target: Path, *, class_hash: str) -> None:
    """Write float32 ONNX, opset 17."""
    import onnx
    import tf2onnx

    def answer(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {OUTPUT: graph(pixels)[0]}

    shape = graph.inputs[0].shape
    signature = [tf.TensorSpec(shape, tf.uint8, name=INPUT)]
    model, _ = tf2onnx.convert.from_function(tf.function(answer), signature, opset=_OPSET)
    sign_onnx(model, class_hash)
    onnx.save(model, target)


def sign_onnx(model: Any, class_hash: str) -> None:
    """Put the hash of the classes into an ONNX model's metadata."""
    import onnx

    onnx.helper.set_model_props(model, {CLASS_HASH: class_hash})


def write_openvino(source: Path, target: Path, *, class_hash: str) -> None:
    """Write OpenVINO's .xml and .bin of an ONNX file, weights as they are there."""
    import openvino

    # Not `convert_model`: that one reports its use to the makers.
    model = openvino.Core().read_model(source)
    model.set_rt_info(class_hash, ["keras_transfer", CLASS_HASH])
    openvino.save_model(model, target, compress_to_fp16=False)


def write_litert(
    graph: Any, target: Path, *, precision: str, images: np.ndarray, contract_folder: Path
) -> None:
    """Write a LiteRT file.

    'float32' and 'float16' are what weights are stored in; 'dynamic' stores int8 weights and
    rounds activations as they come; 'int8' computes in integers throughout, in ranges taken
    from `images`, uint8 [N, S, S, 3] of the training split. Softmax included: its
    probabilities are multiples of 1/256.
    """
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph])
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":

        def show() -> Iterator[list[np.ndarray]]:
            for image in images:
                yield [image[np.newaxis]]

        converter.representative_dataset = show
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
    target.write_bytes(converter.convert())
    with zipfile.ZipFile(target, "a") as packed:
        for name in PACKED:
            packed.write(contract_folder / name, name)
