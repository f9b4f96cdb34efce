"""The table of formats that a run's network can be written in. Imports only the standard library.

They map pixels uint8 [B, S, S, C] 0-255 to outputs float32 [B, K]: preprocessing and the activation
of the logits are included. The .keras and the .difference file give logits of float32 pixels.
"""

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keras_transfer.errors import ExportError
from keras_transfer.fields import nearest

ALL: Final = "all"
MIXED: Final = "mixed"
"""Eight bits, and float32 in the layers that validation images choose."""
EXTRA: Final = "formats"
"""The extra of pyproject.toml that brings the libraries of all formats."""


_ISOLATED: Final = ("keras", "tf_keras", "jax", "keras_transfer")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of artefact: the file of this folder that writes and opens it, and what it needs.

    `module` has the functions `write(source, target, *, precision)` and
    `open_artefact(path, *, num_threads)`, whose result has `predict`, from uint8 [B, S, S, C] to
    float32 [B, K], and `class_hash` ("" if the file has none). It is also loaded by path where
    this package cannot be imported. `runtime` is the library that opens it, `libraries` are the
    libraries needed besides TensorFlow. `blocked` are packages that cannot be imported while it is
    verified. `gives_logits`: the outputs are logits, without activation.
    """

    module: str
    runtime: str
    libraries: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ("tensorflow", *_ISOLATED)
    gives_logits: bool = False


_ONNX_LIBRARIES: Final = ("onnx", "tf2onnx", "onnxruntime")
ONNX: Final = Kind(module="onnx_format", runtime="onnxruntime", libraries=_ONNX_LIBRARIES)
LITERT: Final = Kind(
    module="litert_format", runtime="ai_edge_litert", libraries=("ai_edge_litert",)
)
OPENVINO: Final = Kind(
    module="openvino_format", runtime="openvino", libraries=(*_ONNX_LIBRARIES, "openvino")
)
KERAS: Final = Kind(module="keras_format", runtime="keras", blocked=(), gives_logits=True)
DIFFERENCE: Final = Kind(module="difference_format", runtime="keras", blocked=(), gives_logits=True)
SAVED_MODEL: Final = Kind(module="saved_model_format", runtime="tensorflow", blocked=_ISOLATED)
KERAS_EXPORT: Final = Kind(
    module="saved_model_format", runtime="tensorflow", blocked=_ISOLATED, gives_logits=True
)
"""The export of Keras's own `model.export`: float32 pixels in, logits out."""


@dataclass(frozen=True)
class Format:
    """A file that a run's network can be written to.

    `file` is its name in the folder of formats. `precision` is that of its computation: 'float32'
    and 'float16' must reproduce the model's outputs, 'dynamic', 'int8' and 'mixed' its accuracy.
    """

    name: str
    file: str
    precision: str
    kind: Kind


FORMATS: Final = {
    entry.name: entry
    for entry in (
        Format("onnx", "model.onnx", "float32", ONNX),
        Format("onnx_int8", "model_int8.onnx", "int8", ONNX),
        Format("onnx_mixed", "model_mixed.onnx", MIXED, ONNX),
        Format("litert_float32", "model_float32.tflite", "float32", LITERT),
        Format("litert_float16", "model_float16.tflite", "float16", LITERT),
        Format("litert_dynamic", "model_dynamic.tflite", "dynamic", LITERT),
        Format("litert_int8", "model_int8.tflite", "int8", LITERT),
        Format("openvino", "model.xml", "float32", OPENVINO),
        Format("openvino_int8", "model_int8.xml", "int8", OPENVINO),
        Format("openvino_mixed", "model_mixed.xml", MIXED, OPENVINO),
        Format("keras", "model.keras", "float32", KERAS),
        Format("difference", "model.difference", "float32", DIFFERENCE),
    )
}
"""By name, in the order in which they are written and shown."""


SUFFIXES: Final = {Path(entry.file).suffix: entry.kind for entry in FORMATS.values()}
"""The kind of a file by its suffix; a folder may be a SavedModel."""


def kind_of(path: Path) -> Kind | None:
    """The kind of an artefact; None for any other file."""
    if path.is_dir():
        return SAVED_MODEL if (path / "saved_model.pb").is_file() else None
    return SUFFIXES.get(path.suffix.lower())


def files_of(artefact: Path) -> Iterator[Path]:
    """All files of an artefact: itself, its weights, or everything below it."""
    if artefact.is_dir():
        yield from sorted(path for path in artefact.rglob("*") if path.is_file())
        return
    yield artefact
    if artefact.suffix == ".xml":
        yield artefact.with_suffix(".bin")


def megabytes(artefact: Path) -> float:
    """Size of all files of an artefact that exist, MB (10^6 bytes)."""
    return sum(file.stat().st_size for file in files_of(artefact) if file.is_file()) / 1e6


def parse_formats(text: str) -> tuple[Format, ...]:
    """The formats named by `all` or by a list with commas, in the order of the table.

    Raises:
        ExportError: a name is unknown, or no name is given.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == [ALL]:
        return tuple(FORMATS.values())
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise ExportError(
            "--formats has a format that does not exist" if names else "--formats is empty",
            expected=f"{ALL}, or a list with commas from {', '.join(FORMATS)}",
            received=", ".join(map(repr, unknown)) or repr(text),
            fix=nearest(unknown[0], [*FORMATS, ALL]) if names else f"give --formats {ALL}",
        )
    return tuple(entry for name, entry in FORMATS.items() if name in names)


def check_formats(text: str) -> None:
    """Raise ExportError unless all formats of a list exist and can be written here."""
    check_libraries(parse_formats(text))


def check_libraries(formats: Iterable[Format]) -> None:
    """Raise ExportError, which names all that is missing, unless the libraries are installed."""
    lacking = {
        entry.name: missing
        for entry in formats
        if (missing := [x for x in entry.kind.libraries if importlib.util.find_spec(x) is None])
    }
    if lacking:
        what = "the format" if len(lacking) == 1 else "the formats"
        names = dict.fromkeys(name for missing in lacking.values() for name in missing)
        raise missing_library([*names], what=f"{what} {', '.join(lacking)} cannot be written")


def missing_library(names: Sequence[str], *, what: str) -> ExportError:
    """The error of a library that is not installed; names the extra that brings it."""
    return ExportError(
        what,
        expected=f"the libraries of the extra [{EXTRA}]",
        received=f"no {', '.join(names)}",
        fix=f'pip install -e ".[{EXTRA}]", or leave the format out',
    )
