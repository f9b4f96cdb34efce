"""Opens any artefact in this process: the folder of a SavedModel, or a file of another format."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from keras_transfer.errors import ExportError, KerasTransferError
from keras_transfer.export.contract import FILE_NAME as CONTRACT_FILE
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats.registry import (
    SUFFIXES,
    Kind,
    files_of,
    kind_of,
    missing_library,
)
from keras_transfer.models.activations import activate
from keras_transfer.storage.checksums import verify_checksums


@final
@dataclass(frozen=True, eq=False)
class Runtime:
    """An open artefact: `runtime(pixels)` maps uint8 [B, S, S, C] to float32 [B, K].

    Can be called from several threads; calls of LiteRT and OpenVINO run one after another.
    """

    path: Path
    contract: Contract
    _kind: Kind
    _opened: Any

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Outputs float32 [B, K] in the order of `contract.class_names`.

        Args:
            pixels: uint8 [B, S, S, C], 0-255, of the contract's size and channels, usually RGB;
                B ≥ 1.

        Raises:
            ExportError: the pixels have another dtype or shape.
        """
        shape = self.contract.input_shape
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shape or not len(pixels):
            raise ExportError(
                f"{self.path} cannot be run on these pixels",
                expected=f"uint8 [B, {', '.join(map(str, shape))}], 0-255, B ≥ 1",
                received=f"{pixels.dtype} {list(pixels.shape)}",
                fix="resize images with `data.images.resize_pixels` to the size in the contract",
            )
        outputs = np.asarray(self._opened.predict(np.ascontiguousarray(pixels)), np.float32)
        if self._kind.gives_logits:
            return activate(outputs, self.contract.restored_task.activation)
        return outputs


def open_runtime(
    path: str | Path, *, num_threads: int | None = None, precision: str = "float32"
) -> Runtime:
    """Open an artefact with the contract next to it, or in its folder.

    Args:
        num_threads: threads of one call; None is the library's default.
        precision: 'bfloat16' lets OpenVINO compute in it.

    Raises:
        WeightsError, SpecError: the trunk of a difference file is missing, or another one.
        ExportError: it is not an artefact, its contract is missing or damaged, its library is not
            installed, it cannot be opened, it was changed, or it was written for other classes.
    """
    path = Path(path)
    kind = kind_of(path)
    if not kind or not path.exists():
        raise ExportError(
            f"{path} is not an artefact that can be opened",
            expected=f"the folder of a SavedModel, or a file named {', '.join(sorted(SUFFIXES))}",
            received=_what_is_there(path),
            fix="give a version folder below export/, or a file below formats/",
        )
    if path.is_dir():
        verify_checksums(path)
    else:
        verify_checksums(path.parent, [file.name for file in files_of(path)] + [CONTRACT_FILE])
    contract = Contract.read(path if path.is_dir() else path.parent)
    module = importlib.import_module(f"keras_transfer.export.formats.{kind.module}")
    try:
        hint = {} if precision == "float32" else {"precision": precision}
        opened = module.open_artefact(path, num_threads=num_threads, **hint)
    except ImportError as error:
        raise missing_library([kind.runtime], what=f"{path} cannot be opened") from error
    except KerasTransferError:  # Such as a trunk with other weights.
        raise
    except Exception as error:  # Each library raises its own types of errors.
        raise ExportError(
            f"{path} cannot be opened by {kind.runtime}",
            expected="an undamaged file",
            received=str(error)[:500],
            fix="restore it, or export again",
        ) from error
    check_class_hash(path, opened.class_hash, contract)
    return Runtime(path, contract, kind, opened)


def check_class_hash(path: Path, class_hash: str, contract: Contract) -> None:
    """Raise ExportError unless a file has the hash of its contract, or the beginning of it.

    A SavedModel has its class names instead of a hash.
    """
    if path.is_dir() and not class_hash:
        return
    if not class_hash or not contract.class_hash.startswith(class_hash):
        raise ExportError(
            f"{path} has other classes, or another order, than the files next to it",
            expected=f"an artefact of the classes with the hash {contract.class_hash[:16]}…",
            received=f"one with {class_hash[:16]}…" if class_hash else "one without a hash",
            fix="put the artefact back next to its own contract.json, or export again",
        )


def _what_is_there(path: Path) -> str:
    if path.is_dir():
        return "a folder without saved_model.pb"
    return f"a file named {path.name}" if path.exists() else "nothing"
