"""The table of formats that a run's network can be written in. The standard library only.

Every one of them maps pixels uint8 [B, S, S, 3] 0-255 to probabilities float32 [B, C]: what the
pixels need before the network, and the softmax after it, are inside.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from keras_transfer.errors import ExportError
from keras_transfer.fields import nearest

ALL: Final = "all"
EXTRA: Final = "formats"
"""The extra of pyproject.toml that brings the libraries of all formats."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to write the network down.

    `file` is its name in the folder of formats; `precision` what it computes in: 'float32' and
    'float16' are held to the model's probabilities, 'dynamic' and 'int8' to its accuracy;
    `libraries` are what writing and opening it takes beside TensorFlow.
    """

    name: str
    file: str
    precision: str
    libraries: tuple[str, ...] = ()

    @property
    def is_quantised(self) -> bool:
        """Whether weights, and perhaps activations, are eight-bit integers."""
        return self.precision in ("dynamic", "int8")


_ONNX: Final = ("onnx", "tf2onnx", "onnxruntime")
_LITERT: Final = ("ai_edge_litert",)
_OPENVINO: Final = (*_ONNX, "openvino")

FORMATS: Final = {
    entry.name: entry
    for entry in (
        Format(name="onnx", file="model.onnx", precision="float32", libraries=_ONNX),
        Format(name="onnx_int8", file="model_int8.onnx", precision="int8", libraries=_ONNX),
        Format(
            name="litert_float32",
            file="model_float32.tflite",
            precision="float32",
            libraries=_LITERT,
        ),
        Format(
            name="litert_float16",
            file="model_float16.tflite",
            precision="float16",
            libraries=_LITERT,
        ),
        Format(
            name="litert_dynamic",
            file="model_dynamic.tflite",
            precision="dynamic",
            libraries=_LITERT,
        ),
        Format(name="litert_int8", file="model_int8.tflite", precision="int8", libraries=_LITERT),
        Format(name="openvino", file="model.xml", precision="float32", libraries=_OPENVINO),
        Format(name="openvino_int8", file="model_int8.xml", precision="int8", libraries=_OPENVINO),
        Format(name="keras", file="model.keras", precision="float32"),
    )
}
"""By name, in the order in which they are made and shown."""


def parse_formats(text: str) -> tuple[Format, ...]:
    """The formats that `all` or a list with commas names, in the order of the table.

    Raises:
        ExportError: a name is unknown, or there is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == [ALL]:
        return tuple(FORMATS.values())
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise ExportError(
            "--formats names a format that does not exist" if names else "--formats names none",
            expected=f"{ALL}, or a list with commas of {', '.join(FORMATS)}",
            received=", ".join(map(repr, unknown)) or repr(text),
            fix=nearest(unknown[0], [*FORMATS, ALL]) if names else f"give --formats {ALL}",
        )
    return tuple(entry for name, entry in FORMATS.items() if name in names)


def check_libraries(formats: Iterable[Format]) -> None:
    """Raise ExportError unless all libraries that the formats take are installed."""
    for entry in formats:
        missing = [name for name in entry.libraries if importlib.util.find_spec(name) is None]
        if missing:
            raise missing_library(missing, what=f"the format {entry.name} cannot be written")


def missing_library(names: Sequence[str], *, what: str) -> ExportError:
    """The error of a library that is not installed; names the extra that brings it."""
    return ExportError(
        what,
        expected=f"the libraries of the extra [{EXTRA}]",
        received=f"no {', '.join(names)}",
        fix=f'pip install -e ".[{EXTRA}]", or leave the format out',
    )
