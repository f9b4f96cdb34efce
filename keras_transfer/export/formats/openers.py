"""Opening an artefact of any format: one function from pixels to probabilities. Nothing of ours.

Also read by path in a process in which this package is unknown (`asker.py`), so it imports what a
format needs where it is needed, and nothing else. Only a `.keras` file needs Keras and this
package, whose layer it holds.
"""

import json
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

BFLOAT16: Final = "bfloat16"
KINDS: Final = {".onnx": "onnx", ".tflite": "litert", ".xml": "openvino", ".keras": "keras"}
"""What a file is, by its suffix; a folder is a 'saved_model'."""

PLAIN: Final = "plain"
"""What Keras's own `model.export` writes: float32 pixels in, logits out."""

LIBRARIES: Final = {
    "onnx": "onnxruntime",
    "litert": "ai_edge_litert",
    "openvino": "openvino",
    "keras": "keras",
    "saved_model": "tensorflow",
    PLAIN: "tensorflow",
}


@dataclass(frozen=True, eq=False)
class Opened:
    """An artefact at work: `classify` maps uint8 [B, S, S, 3] to float32 [B, C], in any thread.

    `class_hash` is what the file itself remembers of its classes, '' where it has no room.
    """

    classify: Callable[[np.ndarray], np.ndarray]
    class_hash: str = ""


def kind_of(path: Path) -> str:
    """The kind of an artefact, '' for none that can be opened."""
    if path.is_dir():
        return "saved_model" if (path / "saved_model.pb").is_file() else ""
    return KINDS.get(path.suffix.lower(), "")


def open_artefact(
    path: Path, *, kind: str, num_threads: int | None = None, precision: str = "float32"
) -> Opened:
    """Open an artefact of this kind.

    Args:
        num_threads: of one answer; None leaves it to the library. TensorFlow's are the process's.
        precision: 'bfloat16' lets OpenVINO compute in it.

    Raises:
        ImportError: the library of the kind is not installed.
    """
    if kind == "openvino":
        return _open_openvino(path, num_threads, precision)
    if kind in ("onnx", "litert"):
        return {"onnx": _open_onnx, "litert": _open_litert}[kind](path, num_threads)
    if num_threads is not None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    return {"saved_model": _open_saved_model, PLAIN: _open_plain, "keras": _open_keras}[kind](path)


def _open_onnx(path: Path, num_threads: int | None) -> Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    # Its warnings are about nodes that it makes itself.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    remembered = session.get_modelmeta().custom_metadata_map.get("class_hash", "")
    return Opened(lambda pixels: session.run(None, {name: pixels})[0], remembered)


def _open_litert(path: Path, num_threads: int | None) -> Opened:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=num_threads)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]
    lock = threading.Lock()
    shape = [tuple(interpreter.get_input_details()[0]["shape"])]

    def classify(pixels: np.ndarray) -> np.ndarray:
        # One interpreter has one set of buffers.
        with lock:
            if pixels.shape != shape[0]:
                interpreter.resize_tensor_input(source, pixels.shape)
                interpreter.allocate_tensors()
                shape[0] = pixels.shape
            interpreter.set_tensor(source, pixels)
            interpreter.invoke()
            answer: np.ndarray = interpreter.get_tensor(target)
            return answer

    return Opened(classify, _packed_hash(path))


def _packed_hash(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as packed:
            return str(json.loads(packed.read("contract.json"))["class_hash"])
    except (zipfile.BadZipFile, KeyError, ValueError):
        return ""


def _open_openvino(path: Path, num_threads: int | None, precision: str) -> Opened:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    hint = {"float32": "f32", BFLOAT16: "bf16"}[precision]
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    if num_threads is not None:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    compiled = core.compile_model(model, "CPU", settings)
    where = ["keras_transfer", "class_hash"]
    remembered = str(model.get_rt_info(where).value) if model.has_rt_info(where) else ""
    request, lock = compiled.create_infer_request(), threading.Lock()

    def classify(pixels: np.ndarray) -> np.ndarray:
        with lock:
            return np.array(request.infer({0: pixels})[0])

    return Opened(classify, remembered)


def _open_saved_model(path: Path) -> Opened:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_resized"]

    def classify(pixels: np.ndarray, loaded: Any = loaded) -> np.ndarray:  # noqa: ARG001
        # A signature alone does not keep the variables alive that it reads.
        answer: np.ndarray = serve(pixels=tf.constant(pixels))["probabilities"].numpy()
        return answer

    return Opened(classify)


def _open_plain(path: Path) -> Opened:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))

    def classify(pixels: np.ndarray) -> np.ndarray:
        return _softmax(loaded.serve(tf.constant(pixels.astype(np.float32))).numpy())

    return Opened(classify)


def _open_keras(path: Path) -> Opened:
    import keras

    from keras_transfer.backbones.preprocess import Preprocess

    model = keras.models.load_model(path, custom_objects={"Preprocess": Preprocess}, compile=False)

    def classify(pixels: np.ndarray) -> np.ndarray:
        return _softmax(model.predict_on_batch(pixels.astype(np.float32)))

    return Opened(classify, model.name.removeprefix("classifier_"))


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float32)
    result: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return result
