"""Datasets: from rows of a source to the batches that `fit`, `evaluate` and `predict` read.

Order and views of epoch e are pure functions of (seed, e). So a dataset that starts at epoch e
gives the same batches as one that started at 0, and resuming needs no state.

All batches have the same size, because TPUs and devices that share a batch need that, and no
example is dropped: the last batch is filled with copies of its own examples that have weight 0.
The weights of the real examples are larger in turn, so that a loss is the mean over the real
examples, as in a smaller batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.data.targets import Targets
from keras_transfer.data.views import strengths, view
from keras_transfer.devices.strategy import current
from keras_transfer.errors import DataError
from keras_transfer.specs import ViewSpec

Encode = Callable[[np.ndarray], np.ndarray]

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]

Transform = Callable[[np.ndarray, np.ndarray, np.ndarray, tuple[int, int, int]], Columns]
"""From a batch (inputs float32 [B, …], encoded targets float32 [B, K], weights float32 [B]) and
its key (seed, epoch, step) to the batch that is trained on, of the same shapes and types.

It is a pure function and leaves its arguments as they are; it is called from several threads.
Copies that fill a batch weigh 0 and have to keep that weight.
"""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How rows become batches: `size` examples over all devices, of which a host reads its share.

    Hosts are numbered from 0; host h reads the h-th of `num_hosts` equal shares of every batch.
    A batch may be read in `num_parts` equal parts, one after another, where memory is short.
    """

    size: int
    num_parts: int = 1
    num_devices: int = 1
    host: int = 0
    num_hosts: int = 1

    def fitted(self, num_rows: int) -> "Batching":
        """The same with a smaller batch where the rows do not fill one."""
        if num_rows >= self.size:
            return self
        unit = self.num_devices * self.num_parts
        return replace(self, size=unit * math.ceil(num_rows / unit))

    def fill(self, rows: np.ndarray, *, own: bool = True) -> np.ndarray:
        """Indices into `rows` [N, …], N > 0, that make whole batches: int64 [steps, size].

        All indices in order; the last batch is filled by repeating its own, or the first ones.
        """
        num_left = len(rows) % self.size
        places = np.arange(len(rows))
        if num_left:
            repeated = places[-num_left:] if own else places
            places = np.append(places, np.resize(repeated, self.size - num_left))
        return places.reshape(-1, self.size)

    def share(self, batches: np.ndarray) -> np.ndarray:
        """This host's share of [steps, size, …], batch by batch: [steps * size / hosts, …]."""
        parts = batches.reshape(len(batches), self.num_hosts, -1, *batches.shape[2:])
        mine: np.ndarray = parts[:, self.host]
        return mine.reshape(-1, *batches.shape[2:])

    @property
    def local_size(self) -> int:
        """Examples that this host reads at a time."""
        return self.size // self.num_hosts // self.num_parts

    def step(self, number: int) -> int:
        """The number in an epoch, over all hosts and parts, of this host's read `number`."""
        batch, part = divmod(number, self.num_parts)
        return (batch * self.num_hosts + self.host) * self.num_parts + part


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Batches in an epoch, the last of which may be filled up."""
    return math.ceil(num_rows / batch_size)


def shares(shape: tuple[int, ...], num_rows: int, *, by_batch: bool) -> np.ndarray:
    """Weights float32 [steps, size]: 0 for copies, equal for all others, with a mean of 1.

    The mean is 1 in each batch, or over all batches together.
    """
    real = (np.arange(math.prod(shape)) < num_rows).reshape(shape).astype(np.float32)
    result: np.ndarray = real / real.mean(axis=1 if by_batch else None, keepdims=True)
    return result


_OCCURRENCE_STRIDE = 2**32
"""Distance in view numbers of two occurrences in one epoch; larger than any number of epochs."""

_PARTNERS = int.from_bytes(b"pair")
"""Makes the order of partners differ from that of the examples of the same epoch."""


def epoch_order(
    strata: np.ndarray,
    epoch: int,
    *,
    seed: int,
    sampling: str,
    num_views: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The order of examples in an epoch, and their views: (rows of `strata`, view numbers).

    'natural' is a permutation. 'balanced' draws from every stratum of bool [N, S] equally often
    (±1) in an epoch of the same length: large strata are subsampled, small ones repeated.
    The k-th occurrence of an example in the epoch is view `(epoch + k) mod num_views`. If
    `num_views` is None it is view `epoch + 1 + k · 2^32`, so that no view is used twice.

    Returns:
        Two int64 arrays of length N.
    """
    generator = np.random.default_rng([seed, epoch])
    if sampling == "natural":
        places = generator.permutation(len(strata))
        occurrences = np.zeros(len(strata), np.int64)
    else:
        places, occurrences = _balanced_order(strata, generator)
    return places, _number_views(epoch, occurrences, num_views)


def partner_order(
    num_partners: int, count: int, epoch: int, *, seed: int, num_views: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` of the partners in random order, which repeats where they are fewer.

    Each time all have their turn before one has the next. Views are those of `epoch_order`.

    Returns:
        Places below `num_partners` and view numbers, int64 [count] each.
    """
    generator = np.random.default_rng([seed, epoch, _PARTNERS])
    rounds = [generator.permutation(num_partners) for _ in range(math.ceil(count / num_partners))]
    occurrences = np.arange(count) // num_partners
    return np.concatenate(rounds)[:count], _number_views(epoch, occurrences, num_views)


def _number_views(epoch: int, occurrences: np.ndarray, num_views: int | None) -> np.ndarray:
    if num_views is None:
        return epoch + 1 + _OCCURRENCE_STRIDE * occurrences
    return (epoch + occurrences) % num_views


def _balanced_order(
    strata: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows drawn equally often from every stratum, and how often each occurred before."""
    size, num_strata = strata.shape
    counts = np.full(num_strata, size // num_strata)
    counts[generator.permutation(num_strata)[: size % num_strata]] += 1
    drawn = [
        # No example is repeated before all examples of its stratum were drawn.
        generator.permutation(np.flatnonzero(members))[np.arange(count) % members.sum()]
        for members, count in zip(strata.T, counts, strict=True)
    ]
    places = np.concatenate(drawn)
    occurrences = _count_earlier(places)
    shuffled = generator.permutation(size)
    return places[shuffled], occurrences[shuffled]


def _count_earlier(places: np.ndarray) -> np.ndarray:
    """For each position, how often its value occurs before it, int64 [N]."""
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    counts = np.empty_like(order)
    counts[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return counts


class Pixels(Protocol):
    """Decoded images uint8 [N, S, S, C], in memory or mapped from files."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, S, S, C]."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: Any) -> np.ndarray:
        """An image, or several as one array."""


@dataclass(frozen=True, eq=False)
class Examples:
    """All decoded images of a source, row by row.

    `pixels` uint8 [N, S, S, C], usually memory-mapped; `example_ids` int64 [N],
    `Record.example_id` of each.
    """

    pixels: Pixels
    targets: Targets
    example_ids: np.ndarray


class Inputs(Protocol):
    """What batches are read from: images, or cached features of their views."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""

    @property
    def dtype(self) -> np.dtype:
        """Data type of the values."""

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        """The given views of the given rows, [B, *shape]; called from several threads."""


class Views:
    """Views of decoded images, computed when they are read."""

    def __init__(self, examples: Examples, spec: ViewSpec):
        self._examples = examples
        self._strengths = strengths(spec, examples.pixels.shape[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """[S, S, C] of one image."""
        return self._examples.pixels.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """Bytes."""
        return np.dtype(np.uint8)

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, C]."""
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
    encode: Encode,
    sampling: str = "natural",
    example_weights: np.ndarray | None = None,
    columns: Inputs | None = None,
    transform: Transform | None = None,
    partners: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Batches of some epochs, one epoch after another.

    Order and views are those of `epoch_order`.

    Args:
        encode: turns target values into the loss's targets, `Task.encode`.
        example_weights: float32 [len(rows)]; None gives all the same weight.
        columns: float32 [E] of each view, put behind its encoded target.
        transform: changes every batch as this host reads it: a part of the whole batch where
            hosts share it, or where it is read in parts. `step` in its key counts these within
            the epoch, over all hosts, so that each has a key of its own. Inputs are then float32.
        partners: further rows, one of which follows each example, in `partner_order`; None for
            none. The last batch is then filled by the first examples of the epoch.

    Yields:
        inputs [B, *inputs.shape], encoded targets float32 [B, K], with `columns` [B, K + E],
        weights float32 [B]. In an epoch's last batch the weights of the n real examples are B / n
        times as large, and copies have weight 0. With partners there are 2 B of all, in turn an
        example and a partner, which has weight 0.

    Raises:
        DataError: there are no rows, or sampling is balanced and a stratum has none.
    """
    _check_rows(rows)
    strata = examples.targets.strata[rows]
    if sampling == "balanced":
        examples.targets.take(rows).check_balanced("training.sampling")
    weights = np.ones(len(rows), np.float32) if example_weights is None else example_weights
    batching = batching.fitted(len(rows))

    def batches_of(epoch: np.ndarray) -> Columns:
        places, view_indices = epoch_order(
            strata, int(epoch), seed=seed, sampling=sampling, num_views=num_views
        )
        filled = batching.fill(places, own=partners is None)
        real = shares(filled.shape, len(places), by_batch=True)
        columns = rows[places[filled]], view_indices[filled], weights[places[filled]] * real
        if partners is not None:
            columns = _in_turn(columns, partners, int(epoch), seed=seed, num_views=num_views)
        return tuple(batching.share(column) for column in columns)  # type: ignore[return-value]

    def dataset_of(epoch: tf.Tensor) -> tf.data.Dataset:
        columns = tf.numpy_function(batches_of, [epoch], [tf.int64, tf.int64, tf.float32])
        columns = tuple(tf.ensure_shape(column, [None]) for column in columns)
        slices = tf.data.Dataset.from_tensor_slices(columns)
        num_each = 1 if partners is None else 2
        batches = slices.batch(num_each * batching.local_size, drop_remainder=True)
        if transform is None:
            return batches
        return batches.enumerate().map(lambda number, columns: (*columns, epoch, number))

    def transform_numbered(
        inputs: np.ndarray, encoded: np.ndarray, weights: np.ndarray, epoch: int, number: int
    ) -> Columns:
        assert transform
        key = (seed, int(epoch), batching.step(int(number)))
        return transform(inputs, encoded, weights, key)

    dataset = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(dataset_of)
    num_batches = len(epochs) * steps_per_epoch(len(rows), batching.size) * batching.num_parts
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
    read_targets = _reader_of_targets(examples, encode, columns)
    return _load(dataset, inputs, read_targets, transform and transform_numbered)


def _in_turn(
    columns: Columns, partners: np.ndarray, epoch: int, *, seed: int, num_views: int | None
) -> Columns:
    """Rows, views and weights [steps, B], each followed by a partner: [steps, 2 B]."""
    count = columns[0].size
    places, views = partner_order(len(partners), count, epoch, seed=seed, num_views=num_views)
    others = partners[places], views, np.zeros(count, np.float32)
    pairs = [
        np.stack([own, other.reshape(own.shape)], axis=-1).reshape(len(own), -1)
        for own, other in zip(columns, others, strict=True)
    ]
    return pairs[0], pairs[1], pairs[2]


def evaluation_dataset(
    examples: Examples, rows: np.ndarray, inputs: Inputs, *, batching: Batching, encode: Encode
) -> tf.data.Dataset:
    """Batches of plain images (view 0), in the order of `rows`.

    Yields:
        inputs [B, *inputs.shape], encoded targets float32 [B, K], weights float32 [B]. Copies that
        fill the last batch have weight 0; all others have the same weight, chosen so that a
        weighted mean over all batches is the mean over all rows.

    Raises:
        DataError: there are no rows.
    """
    _check_rows(rows)
    batching = batching.fitted(len(rows))
    filled = batching.fill(rows)
    columns = rows[filled], np.zeros_like(filled), shares(filled.shape, len(rows), by_batch=False)
    slices = tf.data.Dataset.from_tensor_slices(tuple(batching.share(c) for c in columns))
    read_targets = _reader_of_targets(examples, encode)
    return _load(slices.batch(batching.local_size, drop_remainder=True), inputs, read_targets)


class _Targets(NamedTuple):
    """Gives encoded targets float32 [B, width] of rows and views."""

    read: Callable[[np.ndarray, np.ndarray], np.ndarray]
    width: int


def _reader_of_targets(
    examples: Examples, encode: Encode, columns: Inputs | None = None
) -> _Targets:
    values, num_outputs = examples.targets.values, len(examples.targets.names)
    if columns is None:
        return _Targets(lambda rows, _: encode(values[rows]), num_outputs)
    more = columns

    def read(rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        return np.concatenate([encode(values[rows]), more.read(rows, view_indices)], axis=1)

    return _Targets(read, num_outputs + more.shape[0])


def _load(
    batches: tf.data.Dataset,
    inputs: Inputs,
    targets: _Targets,
    transform: Callable[..., Columns] | None = None,
) -> tf.data.Dataset:
    """Read the inputs and targets of batches of (rows, view numbers, weights), in parallel.

    Inputs keep their type, bytes or half precision, so that less is copied to the device, which
    casts them. On a CPU nothing is copied, and NumPy casts faster. A transform gets float32, and
    after the weights the further columns of a batch.
    """
    on_processor = current().kind == "cpu" and keras.backend.backend() == "tensorflow"
    as_floats = on_processor or transform is not None
    dtype = np.dtype(np.float32) if as_floats else inputs.dtype

    def read_inputs(rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        values = inputs.read(rows, view_indices)
        return _aligned_floats(values) if as_floats else values

    def load(
        rows: tf.Tensor, view_indices: tf.Tensor, weights: tf.Tensor, *key: tf.Tensor
    ) -> tuple[Any, ...]:
        read = tf.numpy_function(read_inputs, [rows, view_indices], dtype)
        encoded = tf.numpy_function(targets.read, [rows, view_indices], tf.float32)
        if transform:
            columns = [read, encoded, weights, *key]
            read, encoded, weights = tf.numpy_function(transform, columns, [tf.float32] * 3)
            weights = tf.ensure_shape(weights, rows.shape)
        read = tf.ensure_shape(read, [rows.shape[0], *inputs.shape])
        return read, tf.ensure_shape(encoded, [rows.shape[0], targets.width]), weights

    dataset = batches.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _aligned_floats(values: np.ndarray) -> np.ndarray:
    """The values as float32, aligned to 64 bytes, so that TensorFlow uses them without a copy.

    TensorFlow's own cast takes more than twice as long, because NumPy allocates huge pages, which
    makes new memory cheap.
    """
    memory = np.empty(4 * values.size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    floats = memory[start : start + 4 * values.size].view(np.float32).reshape(values.shape)
    floats[...] = values
    return floats


def _check_rows(rows: np.ndarray) -> None:
    if len(rows) == 0:
        raise DataError(
            "a split of the data is empty",
            expected="at least one image",
            received="none",
            fix="give the split a larger share, or add images",
        )
