"""From rows of a source to the batches that `fit`, `evaluate` and `predict` read.

Order and views of epoch e are pure functions of (seed, e), so a data set that starts at epoch e
goes on exactly as one that started at 0 would have: resuming needs no state.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from keras_transfer.data.views import strengths, view
from keras_transfer.errors import DataError
from keras_transfer.specs import ViewSpec

_OCCURRENCE_STRIDE = 2**32
"""View numbers between two occurrences of a picture in one epoch: more than there are epochs."""


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

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        """These views of these rows, [B, *shape] of any type; called from several threads."""


class Views:
    """Views of decoded pictures, made when they are read."""

    def __init__(self, examples: Examples, spec: ViewSpec):
        self._examples = examples
        self._strengths = strengths(spec)

    @property
    def shape(self) -> tuple[int, ...]:
        """[S, S, 3] of one picture."""
        return self._examples.pixels.shape[1:]

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3]."""
        pixels = np.asarray(self._examples.pixels[rows])
        for place in np.flatnonzero(view_indices):
            example_id = self._examples.example_ids[rows[place]]
            pixels[place] = view(
                pixels[place], example_id, view_indices[place], strengths=self._strengths
            )
        return pixels


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Batches in an epoch, the last of which may be smaller."""
    return math.ceil(num_rows / batch_size)


def training_dataset(
    examples: Examples,
    rows: np.ndarray,
    inputs: Inputs,
    *,
    num_views: int | None,
    batch_size: int,
    seed: int,
    first_epoch: int,
    last_epoch: int,
    sampling: str = "natural",
    class_weights: str = "none",
) -> tf.data.Dataset:
    """Batches of the epochs first_epoch … last_epoch - 1, one epoch after another.

    Order and views are those of `epoch_order`. Every epoch keeps its smaller last batch.
    `class_weights='balanced'` weighs an example of class c by n / (C n_c), as scikit-learn does.

    Yields:
        inputs float32 [B, *inputs.shape], one-hot labels float32 [B, C], weights float32 [B].

    Raises:
        DataError: there are no rows, or balancing is asked for and a class has none.
    """
    _check_rows(examples, rows, balanced="balanced" in (sampling, class_weights))
    labels, num_classes = examples.labels[rows], examples.num_classes
    weights = tf.constant(_class_weights(labels, num_classes, class_weights))

    def order(epoch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places, view_indices = epoch_order(
            labels,
            int(epoch),
            num_classes=num_classes,
            seed=seed,
            sampling=sampling,
            num_views=num_views,
        )
        return rows[places], view_indices

    def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        columns = tf.numpy_function(order, [epoch], [tf.int64] * 2)
        columns = tuple(tf.ensure_shape(column, [None]) for column in columns)
        return tf.data.Dataset.from_tensor_slices(columns).batch(batch_size)

    dataset = tf.data.Dataset.range(first_epoch, last_epoch).flat_map(batches_of)
    num_batches = (last_epoch - first_epoch) * steps_per_epoch(len(rows), batch_size)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
    return _load(dataset, examples, inputs, weights)


def evaluation_dataset(
    examples: Examples, rows: np.ndarray, inputs: Inputs, *, batch_size: int
) -> tf.data.Dataset:
    """View 0 of everything, the plain picture, in the order of `rows`.

    Yields:
        inputs float32 [B, *inputs.shape], one-hot labels float32 [B, C].

    Raises:
        DataError: there are no rows.
    """
    _check_rows(examples, rows, balanced=False)
    pairs = (rows, np.zeros(len(rows), np.int64))
    return _load(tf.data.Dataset.from_tensor_slices(pairs).batch(batch_size), examples, inputs)


def _load(
    batches: tf.data.Dataset,
    examples: Examples,
    inputs: Inputs,
    weights: tf.Tensor | None = None,
) -> tf.data.Dataset:
    """Read what batches of (rows, view numbers) stand for, several batches side by side."""
    labels = tf.constant(examples.labels)

    def read_floats(rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        return _aligned_floats(inputs.read(rows, view_indices))

    def load(rows: tf.Tensor, view_indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        read = tf.numpy_function(read_floats, [rows, view_indices], tf.float32)
        read = tf.ensure_shape(read, [None, *inputs.shape])
        classes = tf.gather(labels, rows)
        one_hot = tf.one_hot(classes, examples.num_classes)
        return (read, one_hot) if weights is None else (read, one_hot, tf.gather(weights, classes))

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


def epoch_order(
    labels: np.ndarray,
    epoch: int,
    *,
    num_classes: int,
    seed: int,
    sampling: str,
    num_views: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Which example an epoch shows when, and in which view: (places in `labels`, view numbers).

    'natural' is a permutation. 'balanced' draws every class equally often (±1) in an epoch of the
    same length: a class with too many examples shows some of them, one with too few goes round.
    The k-th occurrence of an example in the epoch is view `(epoch + k) mod num_views`; or view
    `epoch + 1 + k · 2^32` if there is no such number, so that no view is ever shown twice.

    Returns:
        Two int64 arrays of `len(labels)`.
    """
    generator = np.random.default_rng([seed, epoch])
    if sampling == "natural":
        places = generator.permutation(len(labels))
        occurrences = np.zeros(len(labels), np.int64)
    else:
        places, occurrences = _balanced_order(labels, num_classes, generator)
    if num_views is None:
        return places, epoch + 1 + _OCCURRENCE_STRIDE * occurrences
    return places, (epoch + occurrences) % num_views


def _balanced_order(
    labels: np.ndarray, num_classes: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Places that show every class equally often, and how often each was shown before."""
    counts = np.full(num_classes, len(labels) // num_classes)
    counts[generator.permutation(num_classes)[: len(labels) % num_classes]] += 1
    drawn = [
        _go_round(np.flatnonzero(labels == number), count, generator)
        for number, count in enumerate(counts)
    ]
    places, occurrences = (np.concatenate(column) for column in zip(*drawn, strict=True))
    shuffled = generator.permutation(len(labels))
    return places[shuffled], occurrences[shuffled]


def _go_round(
    members: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`count` draws from the members, in rounds without repetition, and the round of each."""
    numbers = np.arange(count)
    return generator.permutation(members)[numbers % len(members)], numbers // len(members)


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
