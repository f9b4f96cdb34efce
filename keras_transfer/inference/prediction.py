"""What a finished run says about pictures: any number of files, or a labelled set of pixels."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.config import load_spec
from keras_transfer.data.datasets import Pixels
from keras_transfer.data.reading import Known, Picture, read_new_pixels
from keras_transfer.data.records import BadFile, Records
from keras_transfer.errors import DataError, RunError
from keras_transfer.export.contract import Contract
from keras_transfer.fields import nearest
from keras_transfer.specs import RunSpec
from keras_transfer.storage.class_names import check_class_order
from keras_transfer.storage.run_folder import RunFolder

BATCH_SIZE = 32


class Target(Protocol):
    """What can be asked about pictures: a finished run, or an artefact of any format."""

    @property
    def contract(self) -> Contract:
        """How a picture becomes pixels, and what the answers stand for."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities float32 [B, C] of pixels uint8 [B, S, S, 3], B of 1 or more."""


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run's model with all that is needed to ask it about new pictures.

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
    """One picture's answer: `probabilities` is float32 [C], `confidence` the label's own."""

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
    """Answer for every file, in order; one that is no usable picture comes back as a `BadFile`.

    Lazy all the way: only a batch and the reader's look-ahead are in memory, and `files` may be
    endless.

    Args:
        target: from `load_run` or `formats.runtimes.open_runtime`.
        known: probabilities float32 [C] by the digests of files that need not be decoded, from
            `answers.known_answers`.
    """
    contract, known = target.contract, known or {}
    pictures = read_new_pixels(
        files,
        known=known.__contains__,
        image_size=contract.image_size,
        resize=contract.resize,
        max_megapixels=contract.max_megapixels,
    )
    while batch := list(itertools.islice(pictures, batch_size)):
        new = [item.pixels for item in batch if isinstance(item, Picture)]
        answers = iter(target(np.stack(new)) if new else ())
        for item in batch:
            if isinstance(item, BadFile):
                yield item
            else:
                told = isinstance(item, Known)
                probabilities = known[item.encoded.digest] if told else next(answers)
                yield _prediction(item.file, probabilities, contract.class_names)


def predict_pixels(
    model: keras.Model,
    pixels: Pixels,
    *,
    rows: np.ndarray | None = None,
    batch_size: int = BATCH_SIZE,
    on_progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The classifier's probabilities, float32 [N, C]; arguments as for `forward_pixels`."""
    logits = forward_pixels(
        model, pixels, rows=rows, batch_size=batch_size, on_progress=on_progress
    )
    return softmax(logits) if len(logits) else logits


def forward_pixels(
    model: keras.Model,
    pixels: Pixels,
    *,
    rows: np.ndarray | None = None,
    batch_size: int = BATCH_SIZE,
    on_progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The model's outputs, float32 [N, …], in full float32 precision on every device.

    Args:
        pixels: uint8 [M, S, S, 3], in memory or mapped from a file; read batch by batch.
        rows: which N of the M pictures to show, in which order; None shows all.
        on_progress: called with the number of pictures done and N.
    """
    rows = np.arange(len(pixels)) if rows is None else rows
    outputs = np.empty((len(rows), *model.output_shape[1:]), np.float32)
    full = batch_size if batch_size < len(rows) else filled_size(len(rows))
    with full_float32():
        for start in range(0, len(rows), batch_size):
            batch = pixels[rows[start : start + batch_size]].astype(np.float32)
            size = len(batch)
            if size < full:
                # Filled up: another shape would be traced anew, for longer than it takes to run.
                batch = np.resize(batch, (full, *batch.shape[1:]))
            outputs[start : start + size] = model.predict_on_batch(batch)[:size]
            if on_progress is not None:
                on_progress(start + size, len(rows))
    return outputs


def filled_size(size: int) -> int:
    """How many pictures a lone batch of `size` is filled up to.

    XLA compiles a program for each size: on the JAX backend only powers of two are shown.
    """
    return 1 << (size - 1).bit_length() if size and keras.backend.backend() == "jax" else size


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


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float32 of the same shape, along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float32)
    result: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Have float32 products computed in float32: GPUs round to ten bits, TPUs to seven.

    An exported model is held to its model's probabilities to five digits, on any device.
    """
    setting = tf.config.experimental
    before = setting.tensor_float_32_execution_enabled()
    setting.enable_tensor_float_32_execution(False)
    try:
        with _full_float32_on_jax():
            yield
    finally:
        setting.enable_tensor_float_32_execution(before)


def _full_float32_on_jax() -> contextlib.AbstractContextManager[None]:
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    # What was compiled under another setting is compiled anew.
    return jax.default_matmul_precision("float32")
