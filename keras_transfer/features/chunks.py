"""Chunks: fixed parts of an extraction that any process can compute, and the writer of shards.

A chunk has the views to compute, the layers, and the numbers of the shards to write. All of this
is fixed before the work starts. So the files in the cache are the same, bit by bit, whichever
process computes a chunk, in whatever order and however often.

views → layers below the cuts → rows in the cache's type → shards with their final numbers
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
"""Most views in a chunk: a shard of small rows would take hours, and a killed run would lose it."""

_KEY_BYTES: Final = 90
"""Bytes of a row's key as JSON, stored besides its values."""


@dataclass(frozen=True, eq=False)
class Target:
    """A shard of a chunk: rows of one of its outputs, all or those at the indices `places`."""

    output: int
    number: int
    places: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Chunk:
    """A unit of work for one process; self-contained and picklable.

    `folder` is that of the cache. `cache_keys` are those of the graph's outputs, in their order;
    `way` is (precision, batch size). `pairs` are int64 [N, 2] of (row, view). `targets` are the
    shards to write, in order.
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
        """Approximate size of its shards."""
        row_bytes = {
            n: cache_key.row_bytes + _KEY_BYTES for n, cache_key in enumerate(self.cache_keys)
        }
        return sum(row_bytes[t.output] * len(self.pairs_of(t)) for t in self.targets)

    def pairs_of(self, target: Target) -> np.ndarray:
        """The pairs of a shard's rows, in their order."""
        return self.pairs if target.places is None else self.pairs[target.places]

    def alone(self) -> tuple["Chunk", np.ndarray]:
        """The chunk with rows renumbered for a source of its images only, and their old rows."""
        rows, places = np.unique(self.pairs[:, 0], return_inverse=True)
        pairs = np.stack([places, self.pairs[:, 1]], axis=1)
        return dataclasses.replace(self, pairs=pairs), rows


@dataclass(frozen=True, eq=False)
class Gap:
    """The missing `pairs` of one entry, int64 [N, 2], and free shard numbers for them."""

    cache_key: CacheKey
    pairs: np.ndarray
    numbers: Iterator[int]


def split_into_chunks(
    gaps: Sequence[Gap], *, folder: Path, way: tuple[str, int], shard_bytes: int
) -> list[Chunk]:
    """Chunks that fill all gaps in one pass over the images.

    Chunks end at the ends of batches, and pairs are in order. So when a killed extraction
    continues, the remaining pairs make up the same batches and give the same numbers.

    Args:
        gaps: in the order of the graph's outputs; one without pairs is an output not stored.
        folder: that of the cache.
        way: precision and batch size.
        shard_bytes: approximate size of a chunk's largest shard.
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
    """Pairs as single integers in the same order, which NumPy sorts and searches fast."""
    codes: np.ndarray = pairs[:, 0] << 32 | pairs[:, 1]
    return codes


_NUM_THREADS = 2


@dataclass(frozen=True, eq=False)
class FeatureWriter:
    """Computes chunks from a classifier's cuts, by the digests of their cache keys, and images.

    `prefixes` are the frozen layers compiled so far, by precision and digests; they are built
    when a chunk needs them.
    """

    cuts: Mapping[str, Cut]
    source: Source
    prefixes: dict[tuple[str, ...], Prefix] = field(default_factory=dict)

    def keep(self, cache_keys: Iterable[CacheKey], precision: str, prefix: Prefix) -> None:
        """Use a prefix that was already built for the chunks of these cache keys."""
        self.prefixes[precision, *(cache_key.digest for cache_key in cache_keys)] = prefix

    def compute(
        self, chunks: Iterable[Chunk], on_views: Callable[[int], None] | None = None
    ) -> Iterator[Chunk]:
        """Compute chunks in order; yields each one when its shards are on disk.

        Making views, running layers and writing files overlap, also between chunks.

        Args:
            chunks: read a few batches ahead of what is written.
            on_views: called after every batch with its number of views.

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
        """Rows of every output, in the cache's type, batch by batch, with the start of each batch.

        Each thread makes the views of a batch and runs the layers on them: cores that one batch
        leaves idle work on another. On two cores this was up to a quarter faster than one thread
        for views and one for layers. More than two threads were not faster, and each needs memory
        for the activations of a batch.
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
        """Activations in the cache's type; RunError where they overflow."""
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
