"""Features: what the frozen layers make of pictures, computed once for each view and stored.

wanted (row, view) pairs → missing ones → views → prefix → shards in the store → `Features`
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from keras_transfer.data.pipeline import Views
from keras_transfer.errors import RunError
from keras_transfer.features.entry import Entry
from keras_transfer.features.prefix import COMPARED, Choice, Prefix, choose
from keras_transfer.features.shards import SHARD_BYTES, Rows
from keras_transfer.features.source import Features, Request, Source, features_recipe
from keras_transfer.features.store import Store
from keras_transfer.specs import CacheSpec
from keras_transfer.terminal import Narrator

_NUM_THREADS = 2


@dataclass(frozen=True)
class Tally:
    """What an extraction did.

    `num_computed` views went through the prefix, `num_found` were stored already; `num_bytes` is
    what all of them take in the store; `rate` is views per second while they were computed, 0
    where none was; `choice` is how they are computed, decided now or earlier.
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
    cache: CacheSpec,
    store: Store,
    narrator: Narrator,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[list[Features], Tally]:
    """Features at several cuts of one classifier; what is stored already is not computed again.

    All cuts are served by one pass over the pictures. A killed extraction loses at most a shard.

    Raises:
        RunError: no room, or activations too large for float16.
    """
    started = time.perf_counter()
    recipes = [features_recipe(request.cut, source, cache) for request in requests]
    with store.opened(*recipes) as entries:
        jobs = [_Job.of(r, e, source) for r, e in zip(requests, entries, strict=True)]
        rate = _extract_missing(jobs, source, cache, narrator, shard_bytes)
        choice = Choice(**jobs[0].entry.notes)
        features = [job.features(len(source.digests)) for job in jobs]
    wanted = max(len(job.keys) for job in jobs)
    computed = max(len(job.missing) for job in jobs)
    seconds = time.perf_counter() - started
    num_bytes = sum(item.rows.nbytes for item in features)
    return features, Tally(computed, wanted - computed, num_bytes, seconds, rate, choice)


@dataclass(frozen=True, eq=False)
class _Job:
    """A request, the entry that it is served from, and the places in it that are missing."""

    request: Request
    entry: Entry
    keys: list[str]
    missing: np.ndarray

    @classmethod
    def of(cls, request: Request, entry: Entry, source: Source) -> "_Job":
        keys = source.keys(request.wanted)
        return cls(request, entry, keys, np.asarray(entry.missing(keys), np.int64))

    @property
    def depth(self) -> int:
        return len(self.request.cut.variables)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.entry.recipe.dtype)

    def rounded(self, output: np.ndarray) -> np.ndarray:
        """Activations as they are stored; RunError where that loses them."""
        with np.errstate(over="ignore"):
            rows = output.astype(self.dtype)
        if not np.isfinite(rows).all():
            raise RunError(
                f"activations at {self.request.cut.name} are too large to be stored",
                expected=f"numbers that {self.dtype} can hold",
                received=f"up to {np.abs(output).max():g}",
                fix="set cache.dtype=float32, and cache.precision=float32 if that is not enough",
            )
        return rows

    def features(self, num_pictures: int) -> Features:
        wanted = self.request.wanted
        place = np.full((num_pictures, int(wanted[:, 1].max()) + 1), -1, np.int64)
        place[wanted[:, 0], wanted[:, 1]] = np.arange(len(wanted))
        return Features(self.entry.rows(self.keys), place)


def _extract_missing(
    jobs: Sequence[_Job],
    source: Source,
    cache: CacheSpec,
    narrator: Narrator,
    shard_bytes: int,
) -> float:
    """Fill the gaps and return the rate. Entries go on as they were begun; new ones join them.

    After a kill features come out bit by bit as if nothing had happened. So the longest job is
    written last: it lacks all that any other lacks, and batches are made up as they were. And
    complete jobs stay in the graph on the way to incomplete ones, so that it is compiled alike.
    """
    deepest = max((job.depth for job in jobs if len(job.missing)), default=0)
    jobs = [job for job in jobs if len(job.missing) or job.depth <= deepest]
    jobs.sort(key=lambda job: len(job.missing))
    if not deepest:
        return 0.0
    choices = [Choice(**job.entry.notes) for job in jobs if job.entry.notes]
    prefix = None
    if not choices:
        choice, prefix = _choose(jobs, source, cache)
        narrator.say(choice.describe())
        choices = [choice]
    groups: dict[tuple[str, int], list[_Job]] = {}
    for job in jobs:
        if not job.entry.notes:
            job.entry.note(**choices[0].to_dict())
        groups.setdefault(Choice(**job.entry.notes).way, []).append(job)
    started, num_pairs = time.perf_counter(), 0
    for (precision, batch_size), group in groups.items():
        run = prefix or Prefix([job.request.cut for job in group], precision=precision)
        num_pairs += _pass_over(
            group, source, run, narrator, batch_size=batch_size, shard_bytes=shard_bytes
        )
    return num_pairs / (time.perf_counter() - started)


def _choose(jobs: Sequence[_Job], source: Source, cache: CacheSpec) -> tuple[Choice, Prefix]:
    wanted = jobs[-1].request.wanted
    sample = wanted[:: max(1, len(wanted) // COMPARED)][:COMPARED]
    return choose(
        [job.request.cut for job in jobs],
        Views(source.examples, source.views).read(*sample.T),
        precision=cache.precision,
        num_views=len(jobs[-1].missing),
    )


def _pass_over(
    jobs: Sequence[_Job],
    source: Source,
    prefix: Prefix,
    narrator: Narrator,
    *,
    batch_size: int,
    shard_bytes: int,
) -> int:
    """One pass over all pairs that any of the jobs lacks, a shard at a time."""
    lacking = [job.request.wanted[job.missing] for job in jobs]
    pairs = np.unique(np.concatenate(lacking), axis=0)
    batch_bytes = batch_size * max(job.entry.recipe.row_bytes for job in jobs)
    shard_size = batch_size * max(1, shard_bytes // batch_bytes)
    batches = _computed(jobs, source, prefix, pairs, batch_size)
    with narrator.counting("computing features") as count, ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for start in range(0, len(pairs), shard_size):
            shard = pairs[start : start + shard_size]
            rows = [np.empty((len(shard), *job.entry.recipe.shape), job.dtype) for job in jobs]
            for done in range(0, len(shard), batch_size):
                for filled, batch in zip(rows, next(batches), strict=True):
                    filled[done : done + batch_size] = batch
                count(start + min(done + batch_size, len(shard)), len(pairs))
            if writing:
                writing.result()
            writing = writer.submit(_write, jobs, lacking, source, shard, rows)
            if isinstance(source.examples.pixels, Rows):
                source.examples.pixels.release()
        if writing:
            writing.result()
    return len(pairs)


def _computed(
    jobs: Sequence[_Job], source: Source, prefix: Prefix, pairs: np.ndarray, batch_size: int
) -> Iterator[list[np.ndarray]]:
    """Rows as they are stored for every job, batch by batch in the order of the pairs.

    A thread takes a batch all the way: the cores that one batch leaves idle, while its views are
    made or where a layer is too small to share out, work at another. Measured on two cores, that
    is up to a quarter faster than a thread for views beside one for the layers; more than two
    threads gain nothing more, and each holds the activations of a batch.
    """
    views = Views(source.examples, source.views)

    def compute(batch: np.ndarray) -> list[np.ndarray]:
        outputs = prefix(views.read(*batch.T), batch_size)
        return [job.rounded(output) for job, output in zip(jobs, outputs, strict=True)]

    waiting: deque[Future[list[np.ndarray]]] = deque()
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="features") as pool:
        for start in range(0, len(pairs), batch_size):
            waiting.append(pool.submit(compute, pairs[start : start + batch_size]))
            if len(waiting) > _NUM_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write(
    jobs: Sequence[_Job],
    lacking: Sequence[np.ndarray],
    source: Source,
    pairs: np.ndarray,
    rows: Sequence[np.ndarray],
) -> None:
    """Append to every job's entry the rows of this shard that it lacks."""
    for job, missing, computed in zip(jobs, lacking, rows, strict=True):
        # Pairs as single numbers, which NumPy can look up at once.
        ours = np.isin(_codes(pairs), _codes(missing))
        if ours.any():
            job.entry.append(source.keys(pairs[ours]), computed if ours.all() else computed[ours])


def _codes(pairs: np.ndarray) -> np.ndarray:
    codes: np.ndarray = pairs[:, 0] << 32 | pairs[:, 1]
    return codes
