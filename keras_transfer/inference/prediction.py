"""Predictions of a finished run or an exported model for any number of image files."""

import hashlib
import itertools
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

import keras
import numpy as np

import keras_transfer.backbones.preprocess  # noqa: F401  registers the layer with Keras
from keras_transfer.config import load_spec, override
from keras_transfer.data.images import decoding_of
from keras_transfer.data.reading import DecodedImage, Known, read_new_pixels
from keras_transfer.data.records import BadFile
from keras_transfer.devices.graphs import trace_once
from keras_transfer.errors import RunError
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats.registry import files_of
from keras_transfer.export.formats.runtimes import Runtime, open_runtime
from keras_transfer.inference.paths import check_target, refuse_search
from keras_transfer.models.forward import BATCH_SIZE, predict_pixels
from keras_transfer.specs import RunSpec
from keras_transfer.storage.checksums import verify_checksums
from keras_transfer.storage.class_names import check_class_order
from keras_transfer.storage.run_folder import RunFolder, version_folders
from keras_transfer.storage.run_start import check_spec_hash
from keras_transfer.tasks.registry import restore_task
from keras_transfer.tasks.task import Task

TASK_FILE: Final = "task.json"
"""In a run folder: the content of `tasks.registry.describe_task`."""


class Target(Protocol):
    """A finished run, or an artefact of any format."""

    @property
    def contract(self) -> Contract:
        """Image size, resizing, and the task of the outputs."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Outputs float32 [B, K] for pixels uint8 [B, S, S, C], B of 1 or more."""


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run's model with everything needed to predict new images.

    `model` maps float32 [B, S, S, C] in 0-255 to logits in the order of `class_names`, which are
    the names of the outputs of the `task`. `is_moved`: `spec.data.path` is another place than that
    of the training.
    """

    model: keras.Model
    task: Task
    spec: RunSpec
    folder: RunFolder
    is_moved: bool = False

    @property
    def contract(self) -> Contract:
        """The contract, the same as in the run's artefacts."""
        return Contract.of(self.spec, self.task)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the task's outputs."""
        return self.task.names

    def at(self, place: str | None) -> "LoadedRun":
        """The run with its own images at another place; None leaves them where they were."""
        if place is None:
            return self
        spec = override(self.spec, {"data.path": place})
        return replace(self, spec=spec, is_moved=True)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Outputs float32 [B, K] for pixels uint8 [B, S, S, C]."""
        return predict_pixels(
            self.model,
            pixels,
            activation=self.task.activation,
            batch_size=max(len(pixels), 1),
            run=self._run,
        )

    @cached_property
    def _run(self) -> Callable[[np.ndarray], np.ndarray]:
        return trace_once(self.model)


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Prediction:
    """The prediction for one image."""

    path: str
    """The file; of an image in memory its number, from 0."""
    outputs: np.ndarray
    """float32 [K], in the order of `run.class_names`: probabilities, or numbers in your units."""
    task: Task
    """What is predicted; `task.names` are the names of the outputs."""

    def __repr__(self) -> str:
        row = zip(self.task.columns(), self.task.row(self.outputs), strict=True)
        return f"Prediction({self.path!r}, {', '.join(f'{name}={cell}' for name, cell in row)})"

    @property
    def reason(self) -> str:
        """'': a `BadFile` says here why it has no prediction."""
        return ""

    @property
    def labels(self) -> tuple[str, ...]:
        """The predicted names: one class, some labels, or none."""
        return self.task.decided(self.outputs)

    @property
    def label(self) -> str:
        """All `labels` as one text, such as 'roses'."""
        return ", ".join(self.labels)

    @property
    def confidence(self) -> float:
        """The highest output: for classes the probability of `label`."""
        return float(self.outputs.max())


def load_run(path: str | Path) -> LoadedRun:
    """Load the model, classes and spec of a run folder.

    Raises:
        RunError: there is no run, or its class list or model is missing, damaged or changed.
        DataError: the model was trained on other classes, or in another order, than
            class_names.json lists.
        SpecError: its spec.json is not valid.
    """
    folder = RunFolder.open(path)
    refuse_search(folder.path)
    if folder.study_file.is_file():
        raise RunError(
            f"{folder.path} is a study, which saves no model",
            expected="the folder of a single run",
            received=f"{folder.study_file.name}",
            fix="train without folds, seeds and halvings",
        )
    if folder.pretraining_file.is_file():
        raise RunError(
            f"{folder.path} is a pretrained backbone, which predicts nothing",
            expected="the folder of a run",
            received=f"{folder.pretraining_file.name}",
            fix=f"train on labelled images with model.backbone={folder.path}",
        )
    class_names = folder.read_class_names()
    spec = load_spec(folder.path)
    check_spec_hash(folder)
    verify_checksums(
        folder.path,
        error=RunError,
        fix="restore the files from a copy of the run, or train again",
    )
    # Before the model is read: the module of the task may register layers of the model.
    task = restore_task(folder.read_json(TASK_FILE), class_names)
    model = _load_model(folder)
    check_class_order(model.name, class_names, str(folder.path / "class_names.json"))
    expected = (None, spec.data.image_size, spec.data.image_size, spec.data.channels)
    if model.input_shape != expected:
        raise RunError(
            f"{folder.model_file} does not fit {folder.spec_file}",
            expected=f"an input of {expected}, as data.image_size and data.channels say",
            received=f"an input of {model.input_shape}",
            fix="restore both files from the same run",
        )
    return LoadedRun(model, task, spec, folder)


def open_target(path: str | Path) -> LoadedRun | Runtime:
    """Open a run folder, or an artefact with its contract next to it or in its folder.

    Raises:
        RunError: it is neither, or the run is incomplete.
        ExportError: the artefact cannot be opened.
    """
    path = check_target(path)
    if (path / "spec.json").is_file():
        return load_run(path)
    return open_runtime(path)


def open_exported(path: str | Path) -> LoadedRun | Runtime:
    """As `open_target`, but a run predicts with its newest SavedModel that computes in float32.

    It opens in half the time of the Keras model, to which its outputs were compared when it was
    written. A run that has none predicts with the Keras model.

    Raises:
        RunError, ExportError: as `open_target`, also for a SavedModel that was changed.
    """
    path = Path(path)
    if (path / "spec.json").is_file():
        for _, folder in sorted(version_folders(path / "export").items(), reverse=True):
            if Contract.read(folder).precision == "float32":
                return open_runtime(folder)
    return open_target(path)


def identify(target: LoadedRun | Runtime) -> str:
    """A hash of everything that the outputs of a target depend on, in hex."""
    digest = hashlib.sha256(json.dumps(asdict(target.contract)).encode())
    for file in _weights(target):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def predict_files(
    target: Target,
    files: Iterable[Path],
    *,
    known: Mapping[str, np.ndarray] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Prediction | BadFile]:
    """Predict every file, in order; a file that is not a usable image becomes a `BadFile`.

    Only one batch and the files read in advance are in memory, so `files` may be endless.

    Args:
        target: from `load_run`, `open_target` or `formats.runtimes.open_runtime`.
        known: outputs float32 [K] by the digests of files that are not computed again, from
            `cached_logits.known_outputs`.
        batch_size: images in one call of the target.
    """
    contract, known = target.contract, known or {}
    task = contract.restored_task
    images = read_new_pixels(files, known=known.__contains__, **decoding_of(contract))
    while batch := list(itertools.islice(images, batch_size)):
        new = [item.pixels for item in batch if isinstance(item, DecodedImage)]
        predicted = iter(target(np.stack(new)) if new else ())
        for item in batch:
            if isinstance(item, BadFile):
                yield item
            else:
                is_known = isinstance(item, Known)
                outputs = known[item.encoded.digest] if is_known else next(predicted)
                yield Prediction(item.file.as_posix(), outputs, task)


def _load_model(folder: RunFolder) -> keras.Model:
    try:
        return keras.models.load_model(folder.model_file, compile=False)
    except Exception as error:  # Keras raises many types of errors for a damaged archive.
        received = str(error)[:500]
        if not folder.model_file.exists():
            received = "no such file"
        elif not zipfile.is_zipfile(folder.model_file):
            # Keras says that there is no such file.
            size = folder.model_file.stat().st_size
            received = f"a damaged or incomplete file of {size:,} bytes"
        raise RunError(
            f"the model of the run cannot be loaded from {folder.model_file}",
            expected="the model.keras of the run",
            received=received,
            fix="restore the file, or finish the run with --resume",
        ) from error


def _weights(target: LoadedRun | Runtime) -> Iterator[Path]:
    if isinstance(target, LoadedRun):
        yield target.folder.model_file
    elif target.path.is_dir():
        yield target.path / "saved_model.pb"
        yield from files_of(target.path / "variables")
    else:
        yield from files_of(target.path)
