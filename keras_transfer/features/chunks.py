"""Chunks: the work of an extraction in fixed pieces that any process may do, again if need be.

A chunk says which views go through which layers, and under which numbers their rows are stored.
All of that is settled before the work starts. So the cache ends up with the same files, bit by
bit, whoever does which chunk, in whatever order and however often.

The feature writer: where chunks of an extraction are computed, and from where their shards come.

views → layers below the cuts → rows as they are stored → shards under their final numbers
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from keras_transfer.data.datasets import Views
from keras_transfer.errors import RunError
from keras_transfer.features.prefix import Prefix
from keras_transfer.features.source import Source
from keras_transfer.models.cuts import Cut
from keras_transfer.storage.entry import CacheKey
from keras_transfer.storage.shards import Rows, explained, write_shard

CHUNK_VIEWS: Final = 4096
"""Most views in a chunk: small rows would fill a shard only after hours, for a kill to undo."""

_KEY_BYTES: Final = 90
"""What a row takes beside its numbers: its key as JSON."""


@dataclass(frozen=True, eq=False)
class Target:
    """A shard that a chunk fills with rows of one of its outputs: all, or those at `places`."""

    output: int
    number: int
    places: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Chunk:
    """What one process does at a time, complete in itself and picklable.

    `folder` is the cache's. `cache_keys` are those of the activations that the graph gives, in the
    order of its outputs; `way` is precision and batch size. `pairs` are int64 [N, 2] of (row,
    view). `targets` are written in their order.
    """

    folder: Path
    cache_keys: tuple[CacheKey, ...]
    way: tuple[str, int]
    pairs: np.ndarray
    targets: tuple[Target, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def num_bytes(self) -> int:
        """About what its shards take in the cache."""
        row_bytes = {
            n: cache_key.row_bytes + _KEY_BYTES for n, cache_key in enumerate(self.cache_keys)
        }
        return sum(row_bytes[t.output] * len(self.pairs_of(t)) for t in self.targets)

    def pairs_of(self, target: Target) -> np.ndarray:
        """The pairs whose rows a target holds, in the order of the shard."""
        return self.pairs if target.places is None else self.pairs[target.places]

    def alone(self) -> tuple["Chunk", np.ndarray]:
        """The chunk as it is for a source of its own images only, and which rows these are."""
        rows, places = np.unique(self.pairs[:, 0], return_inverse=True)
        pairs = np.stack([places, self.pairs[:, 1]], axis=1)
        return dataclasses.replace(self, pairs=pairs), rows


@dataclass(frozen=True, eq=False)
class Gap:
    """What one entry lacks: `pairs` int64 [N, 2], and numbers of shards that are still free."""

    cache_key: CacheKey
    pairs: np.ndarray
    numbers: Iterator[int]


def split_into_chunks(
    gaps: Sequence[Gap], *, folder: Path, way: tuple[str, int], shard_bytes: int
) -> list[Chunk]:
    """Chunks that fill all gaps in one pass over the images.

    Chunks end where batches do, and pairs are in order. So when a killed extraction goes on, those
    that are left make up the same batches, and get the same numbers.

    Args:
        gaps: in the order of the graph's outputs; one without pairs is an output nobody stores.
        folder: the cache's.
        way: precision and batch size.
        shard_bytes: about how large the largest shard of a chunk may be.
    """
    batch_size = way[1]
    batch_bytes = batch_size * max(gap.cache_key.row_bytes for gap in gaps)
    size = batch_size * max(1, min(shard_bytes // batch_bytes, CHUNK_VIEWS // batch_size))
    codes = np.unique(np.concatenate([_codes(gap.pairs) for gap in gaps]))
    lacking = [np.isin(codes, _codes(gap.pairs), assume_unique=True) for gap in gaps]
    cache_keys = tuple(gap.cache_key for gap in gaps)
    chunks = []
    for start in range(0, len(codes), size):
        part = slice(start, start + size)
        targets = tuple(
            Target(output, next(gap.numbers), None if mask[part].all() else mask[part].nonzero()[0])
            for output, (gap, mask) in enumerate(zip(gaps, lacking, strict=True))
            if mask[part].any()
        )
        pairs = np.stack([codes[part] >> 32, codes[part] & 0xFFFFFFFF], axis=1)
        chunks.append(Chunk(folder, cache_keys, way, pairs, targets))
    return chunks


def _codes(pairs: np.ndarray) -> np.ndarray:
    """Pairs as single numbers in the same order, which NumPy can sort and look up at once."""
    codes: np.ndarray = pairs[:, 0] << 32 | pairs[:, 1]
    return codes


_NUM_THREADS = 2


@dataclass(frozen=True, eq=False)
class FeatureWriter:
    """What chunks are computed with: the cuts of a classifier by their cache keys' digests, images.

    `prefixes` are the frozen layers compiled so far, by precision and digests: they are built
    when a chunk needs them.
    """

    cuts: Mapping[str, Cut]
    source: Source
    prefixes: dict[tuple[str, ...], Prefix] = field(default_factory=dict)

    def keep(self, cache_keys: Iterable[CacheKey], precision: str, prefix: Prefix) -> None:
        """Use a prefix that was built already, for the chunks of these cache keys."""
        self.prefixes[precision, *(cache_key.digest for cache_key in cache_keys)] = prefix

    def compute(
        self, chunks: Iterable[Chunk], on_views: Callable[[int], None] | None = None
    ) -> Iterator[Chunk]:
        """Compute chunks in their order and pass each on when its shards are on disk.

        Views, layers and files overlap, also from one chunk to the next.

        Args:
            chunks: taken a few batches ahead of what is written.
            on_views: told of every batch how many views it had.

        Raises:
            RunError: the disk is full, or activations are too large for their type.
        """
        pixels = self.source.examples.pixels
        rows: list[np.ndarray] = []
        with ThreadPoolExecutor(1) as writer:
            writing: Future[Chunk] | None = None
            for chunk, start, outputs in self._batches(chunks):
                if start == 0:
                    cache_keys = [chunk.cache_keys[target.output] for target in chunk.targets]
                    rows = [np.empty((len(chunk), *r.shape), r.dtype) for r in cache_keys]
                for filled, target in zip(rows, chunk.targets, strict=True):
                    batch = outputs[target.output]
                    filled[start : start + len(batch)] = batch
                if on_views:
                    on_views(len(outputs[0]))
                if start + len(outputs[0]) < len(chunk):
                    continue
                if writing:
                    yield writing.result()
                writing = writer.submit(self._write, chunk, rows)
                if isinstance(pixels, Rows):
                    pixels.release()
            if writing:
                yield writing.result()

    def _batches(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, int, list[np.ndarray]]]:
        """Rows as they are stored for every output, batch by batch, and where each starts.

        A thread takes a batch all the way: the cores that one batch leaves idle, while its views
        are made or where a layer is too small to share out, work at another. Measured on two
        cores, that is up to a quarter faster than a thread for views beside one for the layers;
        more than two threads gain nothing more, and each holds the activations of a batch.
        """
        views = Views(self.source.examples, self.source.views)

        def compute(chunk: Chunk, prefix: Prefix, start: int) -> list[np.ndarray]:
            batch_size = chunk.way[1]
            batch = chunk.pairs[start : start + batch_size]
            outputs = prefix(views.read(*batch.T), batch_size)
            named = zip(outputs, chunk.cache_keys, strict=True)
            return [self._rounded(output, cache_key) for output, cache_key in named]

        waiting: deque[tuple[Chunk, int, Future[list[np.ndarray]]]] = deque()
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="features") as pool:
            for chunk in chunks:
                prefix = self._prefix(chunk)
                for start in range(0, len(chunk), chunk.way[1]):
                    waiting.append((chunk, start, pool.submit(compute, chunk, prefix, start)))
                    if len(waiting) > _NUM_THREADS:
                        yield _done(*waiting.popleft())
            while waiting:
                yield _done(*waiting.popleft())

    def _prefix(self, chunk: Chunk) -> Prefix:
        digests = [cache_key.digest for cache_key in chunk.cache_keys]
        precision = chunk.way[0]
        if (precision, *digests) not in self.prefixes:
            cuts = [self.cuts[digest] for digest in digests]
            self.prefixes[precision, *digests] = Prefix(cuts, precision=precision)
        return self.prefixes[precision, *digests]

    def _rounded(self, output: np.ndarray, cache_key: CacheKey) -> np.ndarray:
        """Activations as they are stored; RunError where that loses them."""
        with np.errstate(over="ignore"):
            rows = output.astype(cache_key.dtype)
        if not np.isfinite(rows).all():
            raise RunError(
                f"activations at {self.cuts[cache_key.digest].name} are too large to be stored",
                expected=f"numbers that {cache_key.dtype} can hold",
                received=f"up to {np.abs(output).max():g}",
                fix="set cache.dtype=float32, and cache.precision=float32 if that is not enough",
            )
        return rows

    def _write(self, chunk: Chunk, rows: list[np.ndarray]) -> Chunk:
        for filled, target in zip(rows, chunk.targets, strict=True):
            cache_key = chunk.cache_keys[target.output]
            folder = chunk.folder / cache_key.id
            with explained(folder):
                write_shard(
                    folder,
                    target.number,
                    entry=cache_key.digest,
                    keys=self.source.keys(chunk.pairs_of(target)),
                    rows=filled if target.places is None else filled[target.places],
                )
        return chunk


def _done(
    chunk: Chunk, start: int, computing: Future[list[np.ndarray]]
) -> tuple[Chunk, int, list[np.ndarray]]:
    return chunk, start, computing.result()
