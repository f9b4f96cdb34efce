"""Grad-CAM heat maps of a finished run for any number of image files."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.data.images import decoding_of
from keras_transfer.data.reading import DecodedImage, read_pixels
from keras_transfer.data.records import BadFile
from keras_transfer.devices.graphs import full_float32
from keras_transfer.errors import DataError
from keras_transfer.export.saved_model.network import (
    activate_in_graph,
    as_trained,
    grad_cam,
    heat_map,
)
from keras_transfer.fields import nearest
from keras_transfer.inference.prediction import LoadedRun
from keras_transfer.models.activations import range_of
from keras_transfer.models.forward import filled_size
from keras_transfer.tasks.task import Task

BATCH_SIZE = 8
"""Small, because gradients need memory, and so that the first images appear soon."""

HIGHEST = -1
"""Instead of a column: the highest output of each image, such as the most probable class."""

Explain = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False, slots=True)
class Explanation:
    """The outputs for one image, and a heat map of one of them."""

    path: str
    """The file."""
    task: Task
    """What is predicted."""
    outputs: np.ndarray
    """float32 [K]."""
    class_index: int
    """The explained output, a column of `outputs`."""
    heat: np.ndarray
    """float32 [h, w] in 0-1, one value for each position of the backbone's last features."""
    pixels: np.ndarray
    """uint8 [S, S, C], the network's square input."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The predicted names: one class, some labels, or none.

        Of outputs with several activations only those in the range of the explained one.
        """
        names = self.task.names[self._compared]
        return tuple(name for name in self.task.decided(self.outputs) if name in names)

    @property
    def label(self) -> str:
        """The `labels` as text; without labels the name of the explained output."""
        return ", ".join(self.labels) or self.explained

    @property
    def confidence(self) -> float:
        """The highest output; without labels the explained one."""
        return float(self.outputs[self._compared].max()) if self.labels else self.explained_output

    @property
    def _compared(self) -> slice:
        """The outputs that are compared with the explained one."""
        return range_of(self.task.activation, self.class_index, len(self.task.names))[1]

    @property
    def explained(self) -> str:
        """Name of the output of the heat map."""
        return self.task.names[self.class_index]

    @property
    def explained_output(self) -> float:
        """The output of the heat map."""
        return float(self.outputs[self.class_index])

    @property
    def is_value(self) -> bool:
        """Whether the output of the heat map is a value, and not a probability."""
        kind, _ = range_of(self.task.activation, self.class_index, len(self.task.names))
        return kind == "linear"

    def format_output(self, output: float) -> str:
        """An output in the explained one's range as text."""
        return self.task.format_output(output, self.class_index)

    @property
    def is_blank(self) -> bool:
        """Whether the heat map is zero everywhere: no evidence for the output."""
        return not self.heat.any()

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` highest outputs in the explained one's range with their names, in order."""
        first = self._compared.start
        best = first + np.argsort(-self.outputs[self._compared], kind="stable")[:count]
        return [(self.task.names[column], float(self.outputs[column])) for column in best]


def explain_files(
    run: LoadedRun,
    files: Iterable[Path],
    *,
    class_name: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Explanation | BadFile]:
    """Explain every file, in order; a file that is not a usable image becomes a `BadFile`.

    Only one batch and the files read in advance are in memory, so `files` may be endless.

    Args:
        class_name: the output to explain in every image, such as a class; None is the highest
            output of each image.
        batch_size: images in one call of the network.

    Raises:
        DataError: at once, if the run has no such output.
    """
    index = _column(run, class_name)
    images = read_pixels(files, **decoding_of(run.spec.data))
    task = run.task
    explain = explainer(run.model, task)

    def explanations() -> Iterator[Explanation | BadFile]:
        while batch := list(itertools.islice(images, batch_size)):
            good = [item.pixels for item in batch if isinstance(item, DecodedImage)]
            found = zip(*explain(np.stack(good), index), strict=True) if good else iter(())
            for item in batch:
                if isinstance(item, BadFile):
                    yield item
                else:
                    yield _explanation(task, item, index, *next(found))

    return explanations()


def explainer(model: keras.Model, task: Task) -> Explain:
    """A function of pixels uint8 [B, S, S, C] and a column of the outputs, or `HIGHEST`.

    It returns outputs float32 [B, K] and Grad-CAM heat maps float32 [B, h, w] in 0-1. The trunk
    runs once per image; one trace is used for batches of any size.
    """
    network = as_trained(model)
    squares = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)

    @tf.function(autograph=False, input_signature=[squares, tf.TensorSpec([], tf.int32)])
    def explain(pixels: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Mixed precision makes half-precision features, whose gradient would be imprecise.
        features = tf.cast(network.trunk(tf.cast(pixels, tf.float32)), tf.float32)
        chosen = tf.fill(tf.shape(features)[:1], index)
        logits = network.head(features)
        signed = grad_cam(network, features, logits, chosen)
        return activate_in_graph(logits, task.activation), heat_map(signed)

    def run(pixels: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
        size = len(pixels)
        filled = np.resize(pixels, (filled_size(size), *pixels.shape[1:]))
        with full_float32():
            outputs, heat = explain(tf.constant(filled, tf.uint8), index)
        return outputs[:size].numpy(), heat[:size].numpy()

    return run


def _explanation(
    task: Task, image: DecodedImage, index: int, outputs: np.ndarray, heat: np.ndarray
) -> Explanation:
    return Explanation(
        path=image.file.as_posix(),
        task=task,
        outputs=outputs,
        class_index=int(outputs.argmax()) if index == HIGHEST else index,
        heat=heat,
        pixels=image.pixels,
    )


def _column(run: LoadedRun, class_name: str | None) -> int:
    if class_name is None and not isinstance(run.task.activation, str):
        raise DataError(
            f"the outputs of the run in {run.folder.path} cannot be compared with each other",
            expected=f"the output to explain, one of {', '.join(run.class_names)}",
            received="none",
            fix=f"add --class {run.class_names[0]}",
        )
    if class_name is None:
        return HIGHEST
    if class_name not in run.class_names:
        raise DataError(
            f"the run in {run.folder.path} has no output {class_name!r}",
            expected="one of its classes, or of its other outputs",
            received=repr(class_name),
            fix=nearest(class_name, run.class_names),
        )
    return run.class_names.index(class_name)
