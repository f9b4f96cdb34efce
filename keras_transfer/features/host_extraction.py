"""Extraction by all hosts of a run: host 0 plans and locks the cache, and every host computes.

All hosts share the cache's folder. Of n hosts, host h computes chunks h, h + n, … and reads the
images of these chunks only.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

from keras_transfer.devices.hosts import meet, share_from_first, wait_for_all
from keras_transfer.features.chunks import Chunk, FeatureWriter
from keras_transfer.features.extraction import ExtractionStats, WorkerPool, extract, this_process
from keras_transfer.features.source import Features, Request, Source, features_key
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import CacheSpec
from keras_transfer.storage.cache import Cache


def extract_together(
    requests: Sequence[Request],
    source: Source,
    *,
    cache_spec: CacheSpec,
    cache: Cache,
    reporter: Reporter,
    worker_pool: WorkerPool = this_process,
) -> tuple[list[Features], ExtractionStats]:
    """As `extract`, by all hosts; every host must make the same call.

    With one host, `worker_pool` computes; with several, the hosts are the worker pool.
    """
    host, num_hosts = meet()
    run = functools.partial(
        extract, requests, source, cache_spec=cache_spec, cache=cache, reporter=reporter
    )
    if num_hosts == 1:
        return run(worker_pool=worker_pool)
    if host == 0:
        return run(worker_pool=_all_hosts)
    cache_keys = [features_key(request.cut, source, cache_spec) for request in requests]
    cuts = [request.cut for request in requests]
    digests = [cache_key.digest for cache_key in cache_keys]
    feature_writer = FeatureWriter(dict(zip(digests, cuts, strict=True)), source)
    _do_share(share_from_first(None), feature_writer)
    # Host 0 unlocks the cache once it has added and checked the shards of all hosts.
    return run()


def _all_hosts(
    chunks: Iterable[Chunk], feature_writer: FeatureWriter, on_views: Callable[[int], None]
) -> Iterator[Chunk]:
    """The worker pool that consists of all hosts."""
    every = share_from_first(list(chunks))
    mine = _do_share(every, feature_writer, on_views)
    on_views(sum(map(len, every)) - mine)
    yield from every


def _do_share(
    chunks: Sequence[Chunk],
    feature_writer: FeatureWriter,
    on_views: Callable[[int], None] | None = None,
) -> int:
    """Compute this host's chunks and wait for the others; returns its number of views."""
    host, num_hosts = meet()
    mine = chunks[host::num_hosts]
    for _ in feature_writer.compute(mine, on_views):
        pass
    wait_for_all()
    return sum(map(len, mine))
