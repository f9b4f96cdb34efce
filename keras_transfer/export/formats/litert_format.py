"""LiteRT files (.tflite).

The contract is appended to the file as a zip archive, where other tools expect labels:
`unzip -p model.tflite contract.json` shows it.
"""

import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from keras_transfer.export.formats.source import Source

_PACKED: Final = ("contract.json", "class_names.json", "labels.txt")


def write(source: "Source", target: Path, *, precision: str) -> None:
    """Write a LiteRT file.

    'float32' and 'float16' are the dtypes of the stored weights. 'dynamic' stores int8 weights and
    quantises activations at run time. 'int8' computes only in integers, also the activation of the
    logits (probabilities are multiples of 1/256); its ranges come from `source.images`.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([source.graph])
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":

        def representative() -> Iterator[list[np.ndarray]]:
            for image in source.images:
                yield [image[np.newaxis]]

        converter.representative_dataset = representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
    target.write_bytes(converter.convert())
    with zipfile.ZipFile(target, "a") as packed:
        for name in _PACKED:
            packed.write(target.with_name(name), name)


def open_artefact(path: Path, *, num_threads: int | None = None) -> SimpleNamespace:
    """Open a LiteRT file; calls from several threads run one after another."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=num_threads)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]
    lock = threading.Lock()
    shape = [tuple(interpreter.get_input_details()[0]["shape"])]

    def predict(pixels: np.ndarray) -> np.ndarray:
        # One interpreter has one set of buffers.
        with lock:
            if pixels.shape != shape[0]:
                interpreter.resize_tensor_input(source, pixels.shape)
                interpreter.allocate_tensors()
                shape[0] = pixels.shape
            interpreter.set_tensor(source, pixels)
            interpreter.invoke()
            outputs: np.ndarray = interpreter.get_tensor(target)
            return outputs

    return SimpleNamespace(predict=predict, class_hash=_packed_hash(path))


def _packed_hash(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as packed:
            return str(json.loads(packed.read("contract.json"))["class_hash"])
    except (zipfile.BadZipFile, KeyError, ValueError):
        return ""
