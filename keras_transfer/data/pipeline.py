"""From decoded pictures to the batches that `fit`, `evaluate` and `predict` read.

Order and views of epoch e are pure functions of (seed, e), so a data set that starts at epoch e
goes on exactly as one that started at 0 would have: resuming needs no state.
"""

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_transfer.data.view_pixels import apply
from keras_transfer.data.views import draw, strengths
from keras_transfer.errors import DataError
from keras_transfer.specs import ViewSpec

_OCCURRENCE_STRIDE = 2**32
"""View numbers between two occurrences of a picture in one epoch: more than there are epochs."""


@dataclass(frozen=True, eq=False)
class Examples:
    """All decoded pictures of a source, row by row.

    `pixels` uint8 [N, S, S, 3], usually memory-mapped; `labels` int64 [N], class indices;
    `example_ids` int64 [N], `Record.example_id` of each.
    """

    pixels: np.ndarray
    labels: np.ndarray
    example_ids: np.ndarray
    num_classes: int


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Batches in an epoch, the last of which may be smaller."""
    return math.ceil(num_rows / batch_size)


def training_dataset(
    examples: Examples,
    rows: np.ndarray,
    *,
    views: ViewSpec,
    batch_size: int,
    seed: int,
    first_epoch: int,
    last_epoch: int,
    sampling: str = "natural",
    class_weights: str = "none",
) -> tf.data.Dataset:
    """Augmented batches of the epochs first_epoch … last_epoch - 1, one epoch after another.

    Order and views are those of `epoch_order`. Every epoch keeps its smaller last batch.
    `class_weights='balanced'` weighs an example of class c by n / (C n_c), as scikit-learn does.

    Yields:
        images float32 [B, S, S, 3] in 0-255, one-hot labels float32 [B, C], weights float32 [B].

    Raises:
        DataError: there are no rows, or balancing is asked for and a class has none.
    """
    _check_rows(examples, rows, balanced="balanced" in (sampling, class_weights))
    labels = examples.labels[rows]
    weights = tf.constant(_class_weights(labels, examples.num_classes, class_weights))
    resolved = strengths(views)

    def order(epoch: np.ndarray) -> tuple[np.ndarray, ...]:
        places, view_indices = epoch_order(
            labels, int(epoch), num_classes=examples.num_classes, seed=seed, sampling=sampling
        )
        return rows[places], examples.example_ids[rows[places]], view_indices

    def draw_one(row: tf.Tensor, example_id: tf.Tensor, view_index: tf.Tensor) -> tuple:
        return row, draw(example_id, view_index, seed, strengths=resolved)

    def load_batch(batch: tf.Tensor, parameters: dict[str, tf.Tensor]) -> tuple:
        images, classes, one_hot = _load(examples, batch)
        return apply(images, parameters), one_hot, tf.gather(weights, classes)

    def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        columns = tf.numpy_function(order, [epoch], [tf.int64] * 3)
        columns = tuple(tf.ensure_shape(column, [None]) for column in columns)
        drawn = tf.data.Dataset.from_tensor_slices(columns).map(
            draw_one, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        return drawn.batch(batch_size)

    dataset = tf.data.Dataset.range(first_epoch, last_epoch).flat_map(batches_of)
    dataset = dataset.map(load_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    num_batches = (last_epoch - first_epoch) * steps_per_epoch(len(rows), batch_size)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
    return dataset.prefetch(tf.data.AUTOTUNE)


def evaluation_dataset(examples: Examples, rows: np.ndarray, *, batch_size: int) -> tf.data.Dataset:
    """Plain pictures in the order of `rows`, never augmented.

    Yields:
        images float32 [B, S, S, 3] in 0-255, one-hot labels float32 [B, C].

    Raises:
        DataError: there are no rows.
    """
    _check_rows(examples, rows, balanced=False)

    def load_batch(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, _, one_hot = _load(examples, batch)
        return tf.cast(images, tf.float32), one_hot

    dataset = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
    dataset = dataset.map(load_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def epoch_order(
    labels: np.ndarray, epoch: int, *, num_classes: int, seed: int, sampling: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which example an epoch shows when, and in which view: (places in `labels`, view numbers).

    'natural' is a permutation that shows view `epoch + 1` of everything. 'balanced' draws every
    class equally often (±1) in an epoch of the same length: a class with too many examples shows
    some of them, one with too few goes round, and the k-th occurrence of an example in the epoch
    is view `epoch + 1 + k · 2^32`, so that no view is ever shown twice.

    Returns:
        Two int64 arrays of `len(labels)`.
    """
    generator = np.random.default_rng([seed, epoch])
    if sampling == "natural":
        places = generator.permutation(len(labels))
        return places, np.full(len(labels), epoch + 1, np.int64)
    counts = np.full(num_classes, len(labels) // num_classes)
    counts[generator.permutation(num_classes)[: len(labels) % num_classes]] += 1
    drawn = [
        _go_round(np.flatnonzero(labels == number), count, generator)
        for number, count in enumerate(counts)
    ]
    places, occurrences = (np.concatenate(column) for column in zip(*drawn, strict=True))
    shuffled = generator.permutation(len(labels))
    return places[shuffled], (epoch + 1 + _OCCURRENCE_STRIDE * occurrences)[shuffled]


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


def _load(examples: Examples, batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Pictures uint8 [B, S, S, 3], labels int64 [B] and one-hot labels of a batch of rows."""

    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(examples.pixels[rows]), examples.labels[rows]

    images, labels = tf.numpy_function(read, [batch], [tf.uint8, tf.int64])
    images = tf.ensure_shape(images, [None, *examples.pixels.shape[1:]])
    labels = tf.ensure_shape(labels, [None])
    return images, labels, tf.one_hot(labels, examples.num_classes)
