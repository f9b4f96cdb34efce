"""The classifier of the pretrained network: its classes are those of the source images."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np

from keras_transfer.errors import SpecError, WeightsError
from keras_transfer.methods.distillation.teacher import load_teacher
from keras_transfer.models.classifier import build_classifier
from keras_transfer.models.cuts import Cut
from keras_transfer.specs import HEAD
from keras_transfer.storage.model_files import check_digest, title
from keras_transfer.training.objective import PhaseContext


@dataclass(frozen=True, eq=False)
class SourceClassifier:
    """A linear classifier of S source classes on D pooled features.

    `cut` has the features of the pretrained network, which reads images of `image_size` px.
    `kernel` is float32 [D, S], `bias` float32 [S].
    """

    cut: Cut
    image_size: int
    kernel: np.ndarray
    bias: np.ndarray


def load_source(path: str, context: PhaseContext) -> SourceClassifier:
    """The classifier in a run folder, in a Keras model file, or in a weights file with its top.

    Raises:
        SpecError: the file has no linear classifier of the backbone's pooled features.
        WeightsError: the file is damaged, or changed since the run was started.
    """
    file, size = check_digest(path), context.spec.data.image_size
    if file.suffix in (".h5", ".hdf5") and not _has_network(file):
        kernel, bias = _read_top(file)
        found = SourceClassifier(_pretrained(context), size, kernel, bias)
    else:
        teacher = load_teacher(path, size)
        if teacher.kernel is None or teacher.bias is None:
            raise _unfit(path, "another last layer")
        bias = np.broadcast_to(teacher.bias, teacher.kernel.shape[1:]).astype(np.float32)
        found = SourceClassifier(teacher.cut, teacher.image_size, teacher.kernel, bias)
    if found.cut.shape != (len(found.kernel),):
        raise _unfit(path, f"one of {len(found.kernel):,} features")
    return found


def _pretrained(context: PhaseContext) -> Cut:
    """The mean features of the backbone with the weights that no phase has changed."""
    spec = context.spec
    fresh = build_classifier(
        spec.model, image_size=spec.data.image_size, task=context.task, seed=spec.seed
    )
    pooled = fresh.stages[HEAD][0].output
    return Cut(keras.Model(fresh.model.input, pooled), pooled, "features of the source")


def _has_network(file: Path) -> bool:
    try:
        with h5py.File(file) as content:
            return "model_config" in content.attrs
    except OSError as error:
        raise _damaged(file) from error


def _read_top(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of the last layer with weights; that of a 1 x 1 convolution is a matrix."""
    arrays: list[np.ndarray] = []
    try:
        with h5py.File(file) as content:
            for name in reversed(list(content.attrs["layer_names"])):
                layer = content[name]
                arrays = [np.array(layer[own]) for own in layer.attrs["weight_names"]]
                if arrays:
                    break
    except (OSError, KeyError) as error:
        raise _damaged(file) from error
    if len(arrays) != 2 or arrays[1].ndim != 1 or arrays[0].size % arrays[1].size:
        raise _unfit(str(file), "weights without a top")
    kernel, bias = arrays
    matrix = kernel.reshape(-1, len(bias))
    if kernel.shape[-2:] != matrix.shape:
        raise _unfit(str(file), f"a last kernel of shape {kernel.shape}")
    return matrix.astype(np.float32), bias.astype(np.float32)


def _damaged(file: Path) -> WeightsError:
    return WeightsError(
        f"{file} cannot be read as weights",
        expected="a legacy weights file of Keras (.h5) with its top",
        received="another file, or a damaged one",
        fix="download it again, or give a run folder or a Keras model file",
    )


def _unfit(path: str, received: str) -> SpecError:
    return SpecError(
        f"{title(path)} has no linear classifier of this backbone's pooled features",
        expected="the network that the backbone's weights come from, with its last layer",
        received=received,
        fix="give its run folder, its Keras model file or its weights file with top as source",
    )
