"""One way to open any artefact: a SavedModel folder, .onnx, .tflite, .xml or .keras."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from keras_transfer.errors import ExportError
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats.openers import KINDS, LIBRARIES, Opened, kind_of, open_artefact
from keras_transfer.export.formats.registry import missing_library


@final
@dataclass(frozen=True, eq=False)
class Runtime:
    """An open artefact: `runtime(pixels)` maps uint8 [B, S, S, 3] to float32 [B, C].

    Can be called from several threads; those of LiteRT and OpenVINO then wait for each other.
    """

    path: Path
    contract: Contract
    _opened: Opened

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities float32 [B, C] in the order of `contract.class_names`.

        Raises:
            ExportError: these are no uint8 pixels of the contract's size.
        """
        size = self.contract.image_size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3) or not len(pixels):
            raise ExportError(
                f"{self.path} cannot answer these pixels",
                expected=f"uint8 [B, {size}, {size}, 3], RGB 0-255, B ≥ 1",
                received=f"{pixels.dtype} {list(pixels.shape)}",
                fix="resize images with `data.images.resize_pixels` as the contract says",
            )
        return np.asarray(self._opened.classify(np.ascontiguousarray(pixels)), np.float32)


def open_runtime(path: str | Path, *, num_threads: int | None = None) -> Runtime:
    """Open an artefact with the contract that lies beside it, or in its folder.

    Args:
        num_threads: of one answer; None leaves it to the library.

    Raises:
        ExportError: it is no artefact, its contract is missing or damaged, its library is not
            installed, it cannot be opened, or it answers with other classes.
    """
    path = Path(path)
    kind = kind_of(path)
    if not kind or not path.exists():
        raise ExportError(
            f"{path} is no artefact that can be opened",
            expected=f"the folder of a SavedModel, or a file named {', '.join(sorted(KINDS))}",
            received=_what_is_there(path),
            fix="give a version folder below export/, or a file below formats/",
        )
    contract = Contract.read(path if path.is_dir() else path.parent)
    try:
        opened = open_artefact(path, kind=kind, num_threads=num_threads)
    except ImportError as error:
        raise missing_library([LIBRARIES[kind]], what=f"{path} cannot be opened") from error
    except Exception as error:  # Each library raises its own kinds.
        raise ExportError(
            f"{path} cannot be opened by {LIBRARIES[kind]}",
            expected="the file as it was written",
            received=str(error)[:500],
            fix="restore it, or export again",
        ) from error
    check_class_hash(path, opened.class_hash, contract)
    return Runtime(path, contract, opened)


def check_class_hash(path: Path, remembered: str, contract: Contract) -> None:
    """Raise ExportError unless a file remembers the classes of its contract, or their beginning.

    A SavedModel keeps its class names inside, and has no hash to compare.
    """
    if path.is_dir() and not remembered:
        return
    if not remembered or not contract.class_hash.startswith(remembered):
        raise ExportError(
            f"{path} answers with other classes, or in another order, than the files beside it say",
            expected=f"an artefact of the classes with the hash {contract.class_hash[:16]}…",
            received=f"one with {remembered[:16]}…" if remembered else "one without a hash",
            fix="put the artefact back beside its own contract.json, or export again",
        )


def _what_is_there(path: Path) -> str:
    if path.is_dir():
        return "a folder without saved_model.pb"
    return f"a file named {path.name}" if path.exists() else "nothing"
