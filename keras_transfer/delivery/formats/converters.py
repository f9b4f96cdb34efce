"""One function for each kind of file: the answering graph goes in, a file comes out.

Each file remembers the hash of the classes it answers with: an ONNX file in its metadata, an
OpenVINO model in its runtime information, a LiteRT file in a contract.json packed behind the model,
where its tools look for label files too (`unzip -p model.tflite contract.json`).
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf

from keras_transfer.delivery.formats.answering import INPUT, OUTPUT

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
    graph: Any, target: Path, *, precision: str, pictures: np.ndarray, contract_folder: Path
) -> None:
    """Write a LiteRT file.

    'float32' and 'float16' are what weights are stored in; 'dynamic' stores int8 weights and
    rounds activations as they come; 'int8' computes in integers throughout, in ranges taken
    from `pictures`, uint8 [N, S, S, 3] of the training split. Softmax included: its
    probabilities are multiples of 1/256.
    """
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph])
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":

        def show() -> Iterator[list[np.ndarray]]:
            for picture in pictures:
                yield [picture[np.newaxis]]

        converter.representative_dataset = show
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
    target.write_bytes(converter.convert())
    with zipfile.ZipFile(target, "a") as packed:
        for name in PACKED:
            packed.write(contract_folder / name, name)
