"""OpenVINO files (.xml and .bin), converted from ONNX files; rt_info has the class hash."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from keras_transfer.export.formats.source import Source

_CLASS_HASH: Final = ["keras_transfer", "class_hash"]
_PRECISIONS: Final = {"float32": "f32", "bfloat16": "bf16"}


def write(source: "Source", target: Path, *, precision: str) -> None:
    """Write .xml and .bin; the weights are those of the ONNX file."""
    import openvino

    from keras_transfer.export.formats.onnx_format import onnx_file

    # Not `convert_model`: that one sends usage statistics.
    model = openvino.Core().read_model(onnx_file(source, precision))
    model.set_rt_info(source.class_hash, _CLASS_HASH)
    openvino.save_model(model, target, compress_to_fp16=False)


def open_artefact(
    path: Path, *, num_threads: int | None = None, precision: str = "float32"
) -> SimpleNamespace:
    """Open an OpenVINO model on the CPU; calls from several threads run one after another.

    With the precision 'bfloat16' it may compute in bfloat16.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
    }
    if num_threads is not None:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    compiled = core.compile_model(model, "CPU", settings)
    has_hash = model.has_rt_info(_CLASS_HASH)
    request, lock = compiled.create_infer_request(), threading.Lock()

    def predict(pixels: np.ndarray) -> np.ndarray:
        with lock:
            return np.array(request.infer({0: pixels})[0])

    return SimpleNamespace(
        predict=predict, class_hash=str(model.get_rt_info(_CLASS_HASH).value) if has_hash else ""
    )
