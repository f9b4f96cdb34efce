"""From rows of a source to the batches that `fit`, `evaluate` and `predict` read.

Order and views of epoch e are pure functions of (seed, e), so a data set that starts at epoch e
goes on exactly as one that started at 0 would have: resuming needs no state.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.data.batching import Batching, shares, steps_per_epoch
from keras_transfer.data.order import epoch_order
from keras_transfer.data.views import strengths, view
from keras_transfer.devices.strategy import current
from keras_transfer.errors import DataError
from keras_transfer.specs import ViewSpec


class Pixels(Protocol):
    """Decoded pictures uint8 [N, S, S, 3], in memory or mapped from files."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, S, S, 3]."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: Any) -> np.ndarray:
        """A picture, or several as one array."""


@dataclass(frozen=True, eq=False)
class Examples:
    """All decoded pictures of a source, row by row.

    `pixels` uint8 [N, S, S, 3], usually memory-mapped; `labels` int64 [N], class indices;
    `example_ids` int64 [N], `Record.example_id` of each.
    """

    pixels: Pixels
    labels: np.ndarray
    example_ids: np.ndarray
    num_classes: int


class Inputs(Protocol):
    """What batches are read from: pictures, or features stored for their views."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""

    @property
    def dtype(self) -> np.dtype:
        """Type of its numbers."""

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        """These views of these rows, [B, *shape]; called from several threads."""


class Views:
    """Views of decoded pictures, made when they are read."""

    def __init__(self, examples: Examples, spec: ViewSpec):
        self._examples = examples
        self._strengths = strengths(spec)

    @property
    def shape(self) -> tuple[int, ...]:
        """[S, S, 3] of one picture."""
        return self._examples.pixels.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """Bytes."""
        return np.dtype(np.uint8)

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3]."""
        pixels = np.asarray(self._examples.pixels[rows])
        for place in np.flatnonzero(view_indices):
            example_id = self._examples.example_ids[rows[place]]
            pixels[place] = view(
                pixels[place], example_id, view_indices[place], strengths=self._strengths
            )
        return pixels


def training_dataset(
    examples: Examples,
    rows: np.ndarray,
    inputs: Inputs,
    *,
    num_views: int | None,
    batching: Batching,
    seed: int,
    epochs: range,
    sampling: str = "natural",
    class_weights: str = "none",
) -> tf.data.Dataset:
    """Batches of some epochs, one epoch after another.

    Order and views are those of `epoch_order`. `class_weights='balanced'` weighs an example of
    class c by n / (C n_c), as scikit-learn does.

    Yields:
        inputs [B, *inputs.shape], one-hot labels float32 [B, C], weights float32 [B]. Of an
        epoch's last batch the n real examples weigh B / n times as much, copies 0.

    Raises:
        DataError: there are no rows, or balancing is asked for and a class has none.
    """
    _check_rows(examples, rows, balanced="balanced" in (sampling, class_weights))
    labels, num_classes = examples.labels[rows], examples.num_classes
    weights = _class_weights(labels, num_classes, class_weights)
    batching = batching.fitted(len(rows))

    def batches_of(epoch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        places, view_indices = epoch_order(
            labels,
            int(epoch),
            num_classes=num_classes,
            seed=seed,
            sampling=sampling,
            num_views=num_views,
        )
        filled = batching.fill(places)
        real = shares(filled.shape, len(places), by_batch=True)
        weighed = weights[labels[places[filled]]] * real
        columns = rows[places[filled]], view_indices[filled], weighed
        return tuple(batching.share(column) for column in columns)  # type: ignore[return-value]

    def dataset_of(epoch: tf.Tensor) -> tf.data.Dataset:
        columns = tf.numpy_function(batches_of, [epoch], [tf.int64, tf.int64, tf.float32])
        columns = tuple(tf.ensure_shape(column, [None]) for column in columns)
        slices = tf.data.Dataset.from_tensor_slices(columns)
        return slices.batch(batching.local_size, drop_remainder=True)

    dataset = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(dataset_of)
    num_batches = len(epochs) * steps_per_epoch(len(rows), batching.size) * batching.num_parts
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
    return _load(dataset, examples, inputs)


def evaluation_dataset(
    examples: Examples, rows: np.ndarray, inputs: Inputs, *, batching: Batching
) -> tf.data.Dataset:
    """View 0 of everything, the plain picture, in the order of `rows`.

    Yields:
        inputs [B, *inputs.shape], one-hot labels float32 [B, C], weights float32 [B]. Copies that
        fill the last batch weigh 0; all others weigh as much as makes their mean over all places
        that over all rows.

    Raises:
        DataError: there are no rows.
    """
    _check_rows(examples, rows, balanced=False)
    batching = batching.fitted(len(rows))
    filled = batching.fill(rows)
    columns = rows[filled], np.zeros_like(filled), shares(filled.shape, len(rows), by_batch=False)
    slices = tf.data.Dataset.from_tensor_slices(tuple(batching.share(c) for c in columns))
    return _load(slices.batch(batching.local_size, drop_remainder=True), examples, inputs)


def _load(batches: tf.data.Dataset, examples: Examples, inputs: Inputs) -> tf.data.Dataset:
    """Read what batches of (rows, view numbers, weights) stand for, several side by side.

    Inputs stay as they are kept, bytes or half precision: that is less to move to a device, which
    makes floats of them. On a processor there is nothing to move to, and NumPy is quicker.
    """
    labels = tf.constant(examples.labels)
    on_processor = current().kind == "cpu" and keras.backend.backend() == "tensorflow"
    dtype = np.dtype(np.float32) if on_processor else inputs.dtype

    def read_inputs(rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        values = inputs.read(rows, view_indices)
        return _aligned_floats(values) if on_processor else values

    def load(rows: tf.Tensor, view_indices: tf.Tensor, weights: tf.Tensor) -> tuple[Any, ...]:
        read = tf.numpy_function(read_inputs, [rows, view_indices], dtype)
        read = tf.ensure_shape(read, [rows.shape[0], *inputs.shape])
        return read, tf.one_hot(tf.gather(labels, rows), examples.num_classes), weights

    dataset = batches.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _aligned_floats(values: np.ndarray) -> np.ndarray:
    """The same numbers in float32, where TensorFlow can take them over without another copy.

    It does so at multiples of 64 bytes. TensorFlow's own cast takes more than twice as long, half
    as long as a view: NumPy asks for huge pages, so that touching new memory is cheap.
    """
    memory = np.empty(4 * values.size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    floats = memory[start : start + 4 * values.size].view(np.float32).reshape(values.shape)
    floats[...] = values
    return floats


def _check_rows(examples: Examples, rows: np.ndarray, *, balanced: bool) -> None:
    if len(rows) == 0:
        raise DataError(
            "a split of the data is empty",
            expected="at least one picture",
            received="none",
            fix="give the split a larger share, or add pictures",
        )
    absent = sorted(set(range(examples.num_classes)) - set(examples.labels[rows].tolist()))
    if balanced and absent:
        raise DataError(
            "classes cannot be balanced where one has no picture",
            expected=f"pictures of all {examples.num_classes} classes in the training split",
            received=f"none of the classes numbered {absent}",
            fix="add pictures of them, or set training.sampling and training.class_weights to "
            "'natural' and 'none'",
        )


def _class_weights(labels: np.ndarray, num_classes: int, class_weights: str) -> np.ndarray:
    """The weight of every class, float32 [C]."""
    if class_weights == "none":
        return np.ones(num_classes, np.float32)
    counts = np.bincount(labels, minlength=num_classes)
    return (len(labels) / (num_classes * counts)).astype(np.float32)
