"""Extraction: the outputs of frozen layers, computed once for each view and cached.

wanted (row, view) pairs → missing ones → chunks → shards in the cache → `Features`

The calling process locks the cache entries from start to end. Chunks can be computed by any number
of processes, on all machines that share the cache's folder.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from keras_transfer.data.datasets import Views
from keras_transfer.errors import RunError
from keras_transfer.features.chunks import Chunk, FeatureWriter, Gap, split_into_chunks
from keras_transfer.features.prefix import COMPARED, Choice, choose
from keras_transfer.features.source import Features, Request, Source, features_key
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import CacheSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.entry import Entry
from keras_transfer.storage.shards import SHARD_BYTES


class WorkerPool(Protocol):
    """Computes the chunks of an extraction, in this process or in many.

    It is called even when nothing is missing, so that all processes take the same steps.
    """

    def __call__(
        self,
        chunks: Iterable[Chunk],
        feature_writer: FeatureWriter,
        on_views: Callable[[int], None],
    ) -> Iterator[Chunk]:
        """Compute each chunk at least once; yields it when its shards are on disk.

        The cache makes room for a chunk when it is read from `chunks`. `feature_writer` computes
        chunks in this process; `on_views` is called with the number of views computed.
        """


def this_process(
    chunks: Iterable[Chunk], feature_writer: FeatureWriter, on_views: Callable[[int], None]
) -> Iterator[Chunk]:
    """A worker pool with one worker: this process."""
    return feature_writer.compute(chunks, on_views)


@dataclass(frozen=True)
class ExtractionStats:
    """Counts and times of an extraction.

    `num_computed` views were computed, `num_found` were already cached; `num_bytes` is the size of
    all of them in the cache; `rate` is computed views per second, 0 where there were none;
    `choice` is the precision and batch size, chosen now or earlier.
    """

    num_computed: int
    num_found: int
    num_bytes: int
    seconds: float
    rate: float
    choice: Choice

    def describe(self) -> str:
        """One sentence."""
        total, size = self.num_computed + self.num_found, f"{self.num_bytes / 1e6:,.1f} MB"
        if not self.num_computed:
            return f"Features of all {total:,} views are stored already ({size}): none is computed."
        text = f"Features of {self.num_computed:,} views were computed in {self.seconds:.1f} s"
        return f"{text} and stored; {self.num_found:,} were there already ({size} in all)."


def extract(
    requests: Sequence[Request],
    source: Source,
    *,
    cache_spec: CacheSpec,
    cache: Cache,
    reporter: Reporter,
    shard_bytes: int = SHARD_BYTES,
    worker_pool: WorkerPool = this_process,
) -> tuple[list[Features], ExtractionStats]:
    """Features at several cuts of one classifier; cached ones are not computed again.

    One pass over the images computes all cuts. A killed extraction loses at most one chunk per
    process.

    Raises:
        RunError: no room, activations too large for float16, or rows are missing afterwards.
    """
    started = time.perf_counter()
    cache_keys = [features_key(request.cut, source, cache_spec) for request in requests]
    with cache.opened(*cache_keys) as entries:
        jobs = _jobs(requests, entries, source)
        chunks, feature_writer = _plan(
            list(jobs.values()), source, cache_spec, reporter, shard_bytes
        )
        rate = _carry_out(chunks, feature_writer, jobs, worker_pool, reporter)
        choice = Choice(**entries[0].notes)
        features = [
            jobs[cache_key.digest].features(request, source)
            for request, cache_key in zip(requests, cache_keys, strict=True)
        ]
    wanted = max(len(job.keys) for job in jobs.values())
    computed = max(len(job.missing) for job in jobs.values())
    seconds = time.perf_counter() - started
    num_bytes = sum(item.rows.nbytes for item in features)
    return features, ExtractionStats(computed, wanted - computed, num_bytes, seconds, rate, choice)


@dataclass(frozen=True, eq=False)
class _Job:
    """A cache entry, the keys wanted from it, and the indices of the missing keys."""

    request: Request
    entry: Entry
    keys: list[str]
    missing: np.ndarray

    def is_below(self, others: "Iterable[_Job]") -> bool:
        """Whether all layers below its cut are below that of one of the others."""
        own = set(map(id, self.request.cut.variables))
        return any(own <= set(map(id, other.request.cut.variables)) for other in others)

    def features(self, request: Request, source: Source) -> Features:
        """The features of one request, which may be a part of the job's keys."""
        wanted = request.wanted
        place = np.full((len(source.digests), int(wanted[:, 1].max()) + 1), -1, np.int64)
        place[wanted[:, 0], wanted[:, 1]] = np.arange(len(wanted))
        keys = self.keys if request is self.request else source.keys(wanted)
        return Features(self.entry.rows(keys), place)


def _jobs(requests: Sequence[Request], entries: Sequence[Entry], source: Source) -> dict[str, _Job]:
    """One job per entry, by the digest of its cache key; several phases may read one entry."""
    jobs: dict[str, _Job] = {}
    for request, entry in zip(requests, entries, strict=True):
        if before := jobs.get(entry.cache_key.digest):
            both = np.concatenate([before.request.wanted, request.wanted])
            request = Request(request.cut, np.unique(both, axis=0))
        keys = source.keys(request.wanted)
        missing = np.asarray(entry.missing(keys), np.int64)
        jobs[entry.cache_key.digest] = _Job(request, entry, keys, missing)
    return jobs


def _plan(
    jobs: list[_Job], source: Source, cache_spec: CacheSpec, reporter: Reporter, shard_bytes: int
) -> tuple[list[Chunk], FeatureWriter]:
    """Chunks that fill the gaps. Existing entries keep their precision; new ones use the same.

    After a kill the features must be the same, bit by bit. Therefore the longest job is written
    last: it lacks all that any other lacks, so batches are composed as before. And complete jobs
    below incomplete ones stay in the graph, so that it is compiled as before.
    """
    feature_writer = FeatureWriter(
        {job.entry.cache_key.digest: job.request.cut for job in jobs}, source
    )
    incomplete = [job for job in jobs if len(job.missing)]
    if not incomplete:
        return [], feature_writer
    jobs = [job for job in jobs if job.is_below(incomplete)]
    jobs.sort(key=lambda job: len(job.missing))
    choices = [Choice(**job.entry.notes) for job in jobs if job.entry.notes]
    if not choices:
        choices = [_choose(jobs, feature_writer, cache_spec)]
        reporter.info(choices[0].describe())
    groups: dict[tuple[str, int], list[_Job]] = {}
    for job in jobs:
        if not job.entry.notes:
            job.entry.note(**choices[0].to_dict())
        groups.setdefault(Choice(**job.entry.notes).way, []).append(job)
    chunks: list[Chunk] = []
    for way, group in groups.items():
        gaps = [
            Gap(job.entry.cache_key, job.request.wanted[job.missing], job.entry.free_numbers())
            for job in group
        ]
        chunks += split_into_chunks(
            gaps, folder=jobs[0].entry.folder.parent, way=way, shard_bytes=shard_bytes
        )
    return chunks, feature_writer


def _choose(jobs: Sequence[_Job], feature_writer: FeatureWriter, cache_spec: CacheSpec) -> Choice:
    wanted, source = jobs[-1].request.wanted, feature_writer.source
    sample = wanted[:: max(1, len(wanted) // COMPARED)][:COMPARED]
    choice, prefix = choose(
        [job.request.cut for job in jobs],
        Views(source.examples, source.views).read(*sample.T),
        precision=cache_spec.precision,
        num_views=len(jobs[-1].missing),
    )
    feature_writer.keep([job.entry.cache_key for job in jobs], choice.precision, prefix)
    return choice


def _carry_out(
    chunks: Sequence[Chunk],
    feature_writer: FeatureWriter,
    jobs: dict[str, _Job],
    worker_pool: WorkerPool,
    reporter: Reporter,
) -> float:
    """Compute all chunks, add their shards to the entries, check them, and return the rate."""
    started, num_views, num_done = time.perf_counter(), sum(map(len, chunks)), 0
    under_way = 0

    def taken() -> Iterator[Chunk]:
        nonlocal under_way
        for chunk in chunks:
            under_way += chunk.num_bytes
            # Any entry will do: they share the cache, and this process has locked them.
            jobs[chunk.cache_keys[0].digest].entry.make_room(under_way)
            yield chunk

    with reporter.progress("computing features") as count:

        def on_views(num_new: int) -> None:
            nonlocal num_done
            num_done += num_new
            count(num_done, num_views)

        for chunk in worker_pool(taken(), feature_writer, on_views):
            under_way -= chunk.num_bytes
            for target in chunk.targets:
                entry = jobs[chunk.cache_keys[target.output].digest].entry
                keys = feature_writer.source.keys(chunk.pairs_of(target))
                entry.adopt(target.number, keys, is_sound=worker_pool is this_process)
    _check_complete(jobs.values())
    return num_views / (time.perf_counter() - started) if chunks else 0.0


def _check_complete(jobs: Iterable[_Job]) -> None:
    """Raise RunError unless every wanted row is there; `adopt` accepts only valid shards."""
    for job in jobs:
        if lost := job.entry.missing(job.keys):
            raise RunError(
                f"the stored {job.entry.cache_key.title} are not complete after the work",
                expected=f"{len(job.keys):,} views",
                received=f"{len(lost):,} of them missing or damaged",
                fix="run it again: complete rows are kept and not computed again",
            )
