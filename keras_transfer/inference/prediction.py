"""Predictions of a finished run or an exported model for any number of image files."""

import hashlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Protocol, TextIO

import keras
import numpy as np

import keras_transfer.backbones.preprocess  # noqa: F401  registers the layer with Keras
from keras_transfer.config import load_spec, override
from keras_transfer.data.file_kinds import is_of_tool, may_be_image
from keras_transfer.data.images import FORMATS, decoding_of
from keras_transfer.data.reading import DecodedImage, Known, read_new_pixels
from keras_transfer.data.records import BadFile
from keras_transfer.errors import DataError, RunError
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats.registry import SUFFIXES, files_of, kind_of
from keras_transfer.export.formats.runtimes import Runtime, open_runtime
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
        """Outputs float32 [B, K] for pixels uint8 [B, S, S, 3], B of 1 or more."""


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run's model with everything needed to predict new images.

    `model` maps float32 [B, S, S, 3] in 0-255 to logits in the order of `class_names`, which are
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
        """Outputs float32 [B, K] for pixels uint8 [B, S, S, 3]."""
        return predict_pixels(
            self.model,
            pixels,
            activation=self.task.activation,
            batch_size=max(len(pixels), 1),
        )


@dataclass(frozen=True, eq=False, slots=True)
class Prediction:
    """The prediction for one image: `outputs` is float32 [K], and `task` is their task.

    `labels` are the predicted names: one class, some labels, or none. `label` has all of them as
    text, `confidence` the highest output.
    """

    path: str
    outputs: np.ndarray
    task: Task

    @property
    def labels(self) -> tuple[str, ...]:
        return self.task.decided(self.outputs)

    @property
    def label(self) -> str:
        return ", ".join(self.labels)

    @property
    def confidence(self) -> float:
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
    if folder.study_file.is_file():
        raise RunError(
            f"{folder.path} is a study, which saves no model",
            expected="the folder of a single run",
            received=f"{folder.study_file.name}",
            fix="train without folds, seeds and halvings",
        )
    class_names = folder.read_class_names()
    spec = load_spec(folder.path)
    check_spec_hash(spec, folder)
    verify_checksums(
        folder.path,
        error=RunError,
        fix="restore the files from a copy of the run, or train again",
    )
    # Before the model is read: the module of the task may register layers of the model.
    task = restore_task(folder.read_json(TASK_FILE), class_names)
    model = _load_model(folder)
    check_class_order(model.name, class_names, str(folder.path / "class_names.json"))
    expected = (None, spec.data.image_size, spec.data.image_size, 3)
    if model.input_shape != expected:
        raise RunError(
            f"{folder.model_file} does not fit {folder.spec_file}",
            expected=f"an input of {expected}, the size in data.image_size",
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
    path = Path(path)
    if (path / "spec.json").is_file():
        return load_run(path)
    if not path.exists() or not kind_of(path):
        raise RunError(
            f"{path} is not a run folder or an exported model",
            expected="a run folder, the folder of a SavedModel such as RUN/export/1, or a file "
            f"named {', '.join(sorted(SUFFIXES))} next to its contract.json",
            received=_what_is_there(path),
            fix="give a folder written by `train`, or an artefact written by `export`",
        )
    if (path.parent / "spec.json").is_file():
        raise RunError(
            f"{path} has no contract next to it",
            expected="a run folder, or an artefact written by `export`",
            received=f"a file of the run in {path.parent}",
            fix=f"give {path.parent}",
        )
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


def expand_paths(arguments: Sequence[str], stdin: TextIO) -> Iterator[Path]:
    """The files in the arguments of a command line, one by one.

    An argument is a file, a folder or '-'. A folder means all images below it, in the order of
    their names, without hidden ones, those of other programs and links to folders. '-' means the
    paths on `stdin`, one per line. Only the names of one folder at a time are in memory.

    Raises:
        DataError: at once, if a path does not exist or a folder has no image.
    """
    for argument in arguments:
        if argument != "-":
            _check_argument(argument)
    return _expand(arguments, stdin)


def _weights(target: LoadedRun | Runtime) -> Iterator[Path]:
    if isinstance(target, LoadedRun):
        yield target.folder.model_file
    elif target.path.is_dir():
        yield target.path / "saved_model.pb"
        yield from files_of(target.path / "variables")
    else:
        yield from files_of(target.path)


def _what_is_there(path: Path) -> str:
    if path.is_dir():
        return "a folder without spec.json and saved_model.pb"
    return f"a file named {path.name}" if path.exists() else "nothing"


def _check_argument(argument: str) -> None:
    if not os.path.exists(argument):
        raise DataError(
            f"{argument} does not exist",
            expected="files, folders of images, or - for a list of paths on standard input",
            received=f"no such path from {os.getcwd()}",
            fix="correct the path",
        )
    if os.path.isdir(argument) and next(_images(argument)) == Path(argument):
        raise DataError(
            f"the folder {argument} has no image",
            expected=f"{FORMATS} files in it or in its sub-folders",
            received="none",
            fix="give a folder with images",
        )


def _expand(arguments: Sequence[str], stdin: TextIO) -> Iterator[Path]:
    for argument in arguments:
        if argument != "-":
            yield from _images(argument)
            continue
        if isinstance(stdin, io.TextIOWrapper):  # Names of files need not be text.
            stdin.reconfigure(errors="surrogateescape")
        for line in stdin:
            if path := line.rstrip("\r\n"):
                yield from _images(path)


def _images(path: str) -> Iterator[Path]:
    """The images below a folder, or the path itself.

    A folder that is empty or cannot be listed is yielded like a file and becomes a `BadFile`, so
    that a long list is not stopped by it.
    """
    if not os.path.isdir(path):
        yield Path(path)
        return
    unlisted: list[OSError] = []
    found = False
    for parent, folders, files in os.walk(path, onerror=unlisted.append):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not is_of_tool(name, is_folder=True)
        )
        for name in sorted(files):
            if may_be_image(Path(parent, name)):
                found = True
                yield Path(parent, name)
    unread = [Path(error.filename) for error in unlisted]
    yield from unread if found or unread else [Path(path)]
