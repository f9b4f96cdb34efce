"""Teachers: networks in files, split at the features below their last dense layer.

Features are stored, as those of a classifier whose head trains: of a run that was trained on the
same images they are there already. The logits follow from them by one product.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.backbones.model_file import read_network
from keras_transfer.data.splits import read_manifest
from keras_transfer.errors import DataError, SpecError, enumerated
from keras_transfer.models.activations import Activation
from keras_transfer.models.cuts import Cut
from keras_transfer.specs import COLOURS
from keras_transfer.storage.class_names import verify_class_names
from keras_transfer.storage.model_files import check_digest, check_teachers, title
from keras_transfer.tasks.registry import register_layers
from keras_transfer.tasks.task import Task

_MOST_NAMED: Final = 10
_TINY: Final = 1e-12
_ACTIVATIONS: Final[dict[Any, Activation]] = {
    keras.activations.softmax: "softmax",
    keras.activations.sigmoid: "sigmoid",
}


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network that predicts the task's classes.

    `cut` is below the last dense layer, whose weights are `kernel` [D, K] and `bias` [K], in the
    user's units; where the network ends with another layer it is the output, and both are None.
    `activation` is that of the output. `names` are the classes and `task` the name of the task,
    both empty for a file that does not come from a run; `seen` are the digests of its training and
    validation images.
    """

    name: str
    cut: Cut
    image_size: int
    kernel: np.ndarray | None
    bias: np.ndarray | None
    activation: Activation
    names: tuple[str, ...]
    task: str
    seen: frozenset[str]

    @property
    def num_outputs(self) -> int:
        """K."""
        return int(self.cut.model.output_shape[-1])

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Logits float32 [N, K] of stored features [N, …]."""
        values = np.asarray(features, np.float32)
        if self.kernel is not None:
            values = values @ self.kernel + self.bias
        if self.kernel is None and self.activation != "linear":
            against = np.maximum(1 - values, _TINY) if self.activation == "sigmoid" else 1.0
            values = np.log(np.maximum(values, _TINY) / against)
        return values

    def check(self, task: Task, test_digests: Sequence[str]) -> None:
        """Raise unless it predicts the same classes and has not seen the test images.

        Raises:
            SpecError: it has another task, or other classes.
            DataError: it was trained on images of the test split.
        """
        received = self.names or (f"{self.num_outputs} outputs",)
        if self.task not in ("", task.name):
            expected, received = f"task {task.name}", (f"task {self.task}",)
        elif self.names and self.names != task.names:
            expected = enumerated(list(task.names), _MOST_NAMED)
        elif self.num_outputs != len(task.names):
            expected = f"{len(task.names)} outputs"
        elif self.activation not in ("linear", task.activation):
            expected, received = f"{task.activation} outputs", (f"{self.activation} outputs",)
        else:
            self._check_unseen(test_digests)
            return
        missing = [name for name in task.names if self.names and name not in self.names]
        more = [name for name in self.names if name not in task.names]
        raise SpecError(
            f"the teacher {self.name} predicts something else than the student"
            + (f"; it does not know {', '.join(missing)}" if missing else "")
            + (f"; the student does not know {', '.join(more)}" if more else ""),
            expected=expected,
            received=enumerated(list(received), _MOST_NAMED),
            fix="give a teacher that was trained on the same classes",
        )

    def _check_unseen(self, test_digests: Sequence[str]) -> None:
        seen = self.seen.intersection(test_digests)
        if seen:
            raise DataError(
                f"the teacher {self.name} was trained on images of this run's test split, which "
                "would make the student look better than it is",
                expected="no image in common",
                received=f"{len(seen):,} of {len(test_digests):,} test images",
                fix="train teacher and student with the same data fields and the same seed",
            )


@functools.lru_cache(maxsize=4)
def load_teacher(path: str, image_size: int, channels: int = COLOURS) -> Teacher:
    """Load the teacher in a run folder or Keras model file; kept, because trials ask for it again.

    Args:
        path: with or without a digest, see `storage.model_files`.
        image_size: side of the images where the network takes any, px.
        channels: of the images, which the network must take.

    Raises:
        SpecError: there is no file, or no network from such images to one row of outputs.
        WeightsError: the file is damaged, or changed since its digest was taken.
    """
    check_teachers([path])
    file, name = check_digest(path), title(path)
    register_layers()
    network = read_network(file, name, image_size=image_size)
    if network.input_shape[-1] != channels:
        raise SpecError(
            f"the teacher {name} takes images with other channels than the student",
            expected=f"data.channels={channels}",
            received=f"an input of shape {network.input_shape}",
            fix=f"set data.channels={network.input_shape[-1]}, or give another teacher",
        )
    if len(network.output_shape) != 2:
        raise SpecError(
            f"the teacher {name} does not end with one row of outputs for an image",
            expected="an output of shape (None, classes)",
            received=f"an output of shape {network.output_shape}",
            fix="give a classifier: a run folder, or a Keras model file with its head",
        )
    cut, kernel, bias, activation = _split(network, name)
    names, task, seen = _read_run(file.parent)
    return Teacher(
        name=name,
        cut=cut,
        image_size=network.input_shape[1],
        kernel=kernel,
        bias=bias,
        activation=activation,
        names=names,
        task=task,
        seen=seen,
    )


def _split(
    network: keras.Model, name: str
) -> tuple[Cut, np.ndarray | None, np.ndarray | None, Activation]:
    """The cut below the last dense layer, this layer's weights, and the output's activation.

    Where a layer above it converts outputs to the user's units, so do the weights.
    """
    operations = list(network.operations)
    top = operations[-1]
    activation = _activation(top)
    converts = isinstance(top, keras.layers.Rescaling)
    ends = isinstance(top, (keras.layers.Softmax, keras.layers.Activation))
    dense = operations[-2] if converts or (ends and activation != "linear") else top
    is_dense = isinstance(dense, keras.layers.Dense) and len(dense.input.shape) == 2
    known = (keras.activations.linear, *(() if converts else _ACTIVATIONS))
    if not is_dense or dense.activation not in known:
        return Cut(network, network.output, f"outputs of {name}"), None, None, activation
    kernel = np.array(dense.kernel, np.float32)
    bias = np.array(0.0 if dense.bias is None else dense.bias, np.float32)
    if converts:
        scale, offset = (np.asarray(one, np.float32) for one in (top.scale, top.offset))
        kernel, bias = kernel * scale, bias * scale + offset
    return Cut(network, dense.input, f"features of {name}"), kernel, bias, activation


def _activation(top: Any) -> Activation:
    """'softmax' or 'sigmoid' where the last layer ends with it, else 'linear'."""
    if isinstance(top, keras.layers.Softmax):
        return "softmax"
    return _ACTIVATIONS.get(getattr(top, "activation", None), "linear")


def _read_run(folder: Path) -> tuple[tuple[str, ...], str, frozenset[str]]:
    """Classes, task and digests of the images of the run in a folder, empty where unknown."""
    names: tuple[str, ...] = ()
    task, seen = "", frozenset[str]()
    if (file := folder / "class_names.json").is_file():
        names = verify_class_names(_read(file), where=str(file))
    if (file := folder / "task.json").is_file():
        task = _read(file)["task"]
    elif (file := folder / "contract.json").is_file():
        task = _read(file)["task"]["task"]
    if (file := folder / "splits.json").is_file():
        items, splits = read_manifest(_read(file))
        seen = frozenset(items[row].digest for row in (*splits.train, *splits.val))
    return names, task, seen


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
