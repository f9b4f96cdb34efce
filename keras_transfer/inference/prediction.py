"""What a finished run says about images: any number of files, or a labelled set of pixels."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import keras
import numpy as np

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.config import load_spec
from keras_transfer.data.reading import DecodedImage, Known, read_new_pixels
from keras_transfer.data.records import BadFile, Records
from keras_transfer.errors import DataError, RunError
from keras_transfer.export.contract import Contract
from keras_transfer.fields import nearest
from keras_transfer.models.forward import BATCH_SIZE, predict_pixels
from keras_transfer.specs import RunSpec
from keras_transfer.storage.class_names import check_class_order
from keras_transfer.storage.run_folder import RunFolder


class Target(Protocol):
    """What can be asked about images: a finished run, or an artefact of any format."""

    @property
    def contract(self) -> Contract:
        """How an image becomes pixels, and what the answers stand for."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities float32 [B, C] of pixels uint8 [B, S, S, 3], B of 1 or more."""


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run's model with all that is needed to ask it about new images.

    `model` maps float32 [B, S, S, 3] in 0-255 to logits in the order of `class_names`.
    """

    model: keras.Model
    class_names: tuple[str, ...]
    spec: RunSpec
    folder: RunFolder

    @property
    def contract(self) -> Contract:
        """The terms that the run's artefacts have, too."""
        return Contract.of(self.spec, self.class_names)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities float32 [B, C] of pixels uint8 [B, S, S, 3]."""
        return predict_pixels(self.model, pixels, batch_size=max(len(pixels), 1))


@dataclass(frozen=True, eq=False, slots=True)
class Prediction:
    """One image's answer: `probabilities` is float32 [C], `confidence` the label's own."""

    path: str
    label: str
    confidence: float
    probabilities: np.ndarray


def load_run(path: str | Path) -> LoadedRun:
    """Load the model, classes and spec of a run folder.

    Raises:
        RunError: there is no run, or its class list or model is missing, damaged or changed.
        DataError: the model was trained on other classes, or in another order, than
            class_names.json lists.
        SpecError: its spec.json does not make sense.
    """
    folder = RunFolder.open(path)
    if folder.study_file.is_file():
        raise RunError(
            f"{folder.path} is a study, which keeps no model",
            expected="the folder of a single run",
            received=f"{folder.study_file.name}",
            fix="train without folds, seeds and halvings",
        )
    class_names = folder.read_class_names()
    spec = load_spec(folder.path)
    model = _load_model(folder)
    check_class_order(model.name, class_names, str(folder.path / "class_names.json"))
    expected = (None, spec.data.image_size, spec.data.image_size, 3)
    if model.input_shape != expected:
        raise RunError(
            f"{folder.model_file} does not fit {folder.spec_file}",
            expected=f"an input of {expected}, as data.image_size says",
            received=f"an input of {model.input_shape}",
            fix="restore the two files of one and the same run",
        )
    return LoadedRun(model, class_names, spec, folder)


def predict_files(
    target: Target,
    files: Iterable[Path],
    *,
    known: Mapping[str, np.ndarray] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Prediction | BadFile]:
    """Answer for every file, in order; one that is no usable image comes back as a `BadFile`.

    Lazy all the way: only a batch and the reader's look-ahead are in memory, and `files` may be
    endless.

    Args:
        target: from `load_run` or `formats.runtimes.open_runtime`.
        known: probabilities float32 [C] by the digests of files that need not be decoded, from
            `answers.known_probabilities`.
    """
    contract, known = target.contract, known or {}
    images = read_new_pixels(
        files,
        known=known.__contains__,
        image_size=contract.image_size,
        resize=contract.resize,
        max_megapixels=contract.max_megapixels,
    )
    while batch := list(itertools.islice(images, batch_size)):
        new = [item.pixels for item in batch if isinstance(item, DecodedImage)]
        answers = iter(target(np.stack(new)) if new else ())
        for item in batch:
            if isinstance(item, BadFile):
                yield item
            else:
                told = isinstance(item, Known)
                probabilities = known[item.encoded.digest] if told else next(answers)
                yield _prediction(item.file, probabilities, contract.class_names)


def labels_in_order(run: LoadedRun, records: Records) -> np.ndarray:
    """True classes int64 [N] of a labelled set in the run's order of classes.

    The set may list its classes in another order, or only some of the run's: labels go by name.

    Raises:
        DataError: the set has a class the run was not trained on.
    """
    column = {name: number for number, name in enumerate(run.class_names)}
    unknown = [name for name in records.class_names if name not in column]
    if unknown:
        raise DataError(
            f"{records.root} has classes that the run in {run.folder.path} was not trained on",
            expected=f"classes out of {', '.join(run.class_names)}",
            received=", ".join(repr(name) for name in unknown),
            fix=nearest(unknown[0], run.class_names),
        )
    return np.array([column[record.label] for record in records.items], np.int64)


def _load_model(folder: RunFolder) -> keras.Model:
    try:
        return keras.models.load_model(
            folder.model_file, custom_objects={"Preprocess": Preprocess}, compile=False
        )
    except Exception as error:  # Keras raises many kinds for a damaged archive.
        received = "no such file" if not folder.model_file.exists() else str(error)[:500]
        raise RunError(
            f"the model of the run cannot be loaded from {folder.model_file}",
            expected="the model.keras that the run wrote",
            received=received,
            fix="restore the file, or finish the run with --resume",
        ) from error


def _prediction(file: Path, probabilities: np.ndarray, class_names: tuple[str, ...]) -> Prediction:
    top = int(probabilities.argmax())
    return Prediction(file.as_posix(), class_names[top], float(probabilities[top]), probabilities)
