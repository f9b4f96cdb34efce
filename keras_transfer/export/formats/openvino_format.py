"""OpenVINO files (.xml and .bin), made of ONNX files; runtime information has the class hash."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from keras_transfer.export.formats.source import Source

_CLASS_HASH: Final = ["keras_transfer", "class_hash"]
_PRECISIONS: Final = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True, eq=False)
class OpenedOpenVINO:
    """`predict` maps uint8 [B, S, S, 3] to float32 [B, K]; threads wait for each other."""

    predict: Callable[[np.ndarray], np.ndarray]
    class_hash: str


def write(source: "Source", target: Path, *, precision: str) -> None:
    """Write .xml and .bin; the weights stay as they are in the ONNX file."""
    import openvino

    from keras_transfer.export.formats.onnx_format import onnx_file

    # Not `convert_model`: that one sends usage statistics.
    model = openvino.Core().read_model(onnx_file(source, precision))
    model.set_rt_info(source.class_hash, _CLASS_HASH)
    openvino.save_model(model, target, compress_to_fp16=False)


def open_artefact(
    path: Path, *, num_threads: int | None = None, precision: str = "float32"
) -> OpenedOpenVINO:
    """Open an OpenVINO model on the CPU; 'bfloat16' lets it compute in that."""
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

    return OpenedOpenVINO(predict, str(model.get_rt_info(_CLASS_HASH).value) if has_hash else "")
