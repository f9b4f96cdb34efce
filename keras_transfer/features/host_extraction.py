"""Extraction by all hosts of a run: host 0 plans and keeps the store, and every host computes.

The store's folder is one that all of them see. A host reads and computes every so-manieth unit,
and of the pictures only those.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

from keras_transfer.devices.hosts import meet, share_from_first, wait_for_all
from keras_transfer.features.chunks import Unit, Workshop
from keras_transfer.features.extraction import Crew, Tally, alone, extract
from keras_transfer.features.source import Features, Request, Source, features_recipe
from keras_transfer.reporting.reporter import Narrator
from keras_transfer.specs import CacheSpec
from keras_transfer.storage.cache import Store


def extract_together(
    requests: Sequence[Request],
    source: Source,
    *,
    cache: CacheSpec,
    store: Store,
    narrator: Narrator,
    crew: Crew = alone,
) -> tuple[list[Features], Tally]:
    """As `extract`, by as many hosts as there are; all of them have to call it alike.

    `crew` computes on a host that is alone; several hosts are a crew themselves.
    """
    host, num_hosts = meet()
    run = functools.partial(extract, requests, source, cache=cache, store=store, narrator=narrator)
    if num_hosts == 1:
        return run(crew=crew)
    if host == 0:
        return run(crew=_all_hosts)
    recipes = [features_recipe(request.cut, source, cache) for request in requests]
    cuts = [request.cut for request in requests]
    digests = [recipe.digest for recipe in recipes]
    workshop = Workshop(dict(zip(digests, cuts, strict=True)), source)
    _do_share(share_from_first(None), workshop)
    # Host 0 lets go of the store when it has taken in and checked what all have written.
    return run()


def _all_hosts(
    units: Iterable[Unit], workshop: Workshop, on_views: Callable[[int], None]
) -> Iterator[Unit]:
    """The crew of host 0 and all others."""
    every = share_from_first(list(units))
    mine = _do_share(every, workshop, on_views)
    on_views(sum(map(len, every)) - mine)
    yield from every


def _do_share(
    units: Sequence[Unit], workshop: Workshop, on_views: Callable[[int], None] | None = None
) -> int:
    """Compute this host's units and wait for the others; how many views were its own."""
    host, num_hosts = meet()
    mine = units[host::num_hosts]
    for _ in workshop.compute(mine, on_views):
        pass
    wait_for_all()
    return sum(map(len, mine))
