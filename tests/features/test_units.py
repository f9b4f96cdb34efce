"""Chunks are planned once, and the cache holds the same files on any number of workers."""

import dataclasses
import hashlib
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from feature_sources import EXACT, PIXELS, cut_at, make_source, wanted
from small_models import make_classifier

from keras_transfer.errors import RunError
from keras_transfer.features.chunks import CHUNK_VIEWS, Gap, split_into_chunks
from keras_transfer.features.extraction import extract, this_process
from keras_transfer.features.source import Request
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.entry import CacheKey

RECIPE = CacheKey("features", "small", {}, (4,), "float16")
NUM_IMAGES = 150


def files_of(folder: Path) -> dict[str, str]:
    """Hashes of everything in a cache's entries but the day of their birth."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "entry.json" and path.suffix != ".lock"
    }


@pytest.fixture(scope="module")
def requests():
    classifier = make_classifier()
    cuts = [cut_at(classifier, "head"), cut_at(classifier, "stage2")]
    pairs = [wanted(NUM_IMAGES, 1), wanted(NUM_IMAGES, 3)]
    return [Request(cut, rows) for cut, rows in zip(cuts, pairs, strict=True)]


def run(requests, folder: Path, worker_pool=this_process, source=None):
    return extract(
        requests,
        source or make_source(NUM_IMAGES),
        cache_spec=EXACT,
        cache=Cache(folder),
        reporter=SilentReporter(),
        shard_bytes=50_000,
        worker_pool=worker_pool,
    )


@pytest.fixture(scope="module")
def undisturbed(requests, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run(requests, folder)
    return files_of(folder)


def crew_of(num_hosts: int, order: int):
    """Processes as they would be on many hosts, one after the other: u % H == h, by pickle."""

    def work(chunks, feature_writer, on_views):
        chunks = pickle.loads(pickle.dumps(list(chunks)))
        assert len(chunks) > 2 * num_hosts
        for host in sorted(range(num_hosts), key=lambda h: order * h):
            own = dataclasses.replace(feature_writer, prefixes={})
            yield from own.compute(chunks[host::num_hosts][::order], on_views)

    return work


@pytest.mark.parametrize(("num_hosts", "order"), [(1, -1), (2, 1), (4, -1)])
def test_the_store_has_the_same_bits_with_any_worker_pool(
    requests, undisturbed, tmp_path, num_hosts, order
):
    features, stats = run(requests, tmp_path, crew_of(num_hosts, order))
    assert files_of(tmp_path) == undisturbed
    assert stats.num_computed == 3 * NUM_IMAGES
    assert [len(item.rows) for item in features] == [NUM_IMAGES, 3 * NUM_IMAGES]


def test_a_killed_crew_leaves_gaps_that_the_next_one_fills_with_the_same_files(
    requests, undisturbed, tmp_path
):
    def first_and_last(chunks, feature_writer, on_views):
        chunks = list(chunks)
        yield from feature_writer.compute([chunks[0], chunks[2], chunks[-1]], on_views)

    with pytest.raises(RunError, match="not complete") as raised:
        run(requests, tmp_path, first_and_last)
    assert "missing or damaged" in raised.value.received
    assert 0 < len(files_of(tmp_path)) < len(undisturbed)
    _, stats = run(requests, tmp_path)
    assert 0 < stats.num_computed < 3 * NUM_IMAGES
    assert files_of(tmp_path) == undisturbed


def test_a_unit_computed_again_changes_nothing(requests, undisturbed, tmp_path):
    def twice(chunks, feature_writer, on_views):
        for chunk in chunks:
            for _ in range(2):
                list(feature_writer.compute([chunk]))
            yield chunk

    run(requests, tmp_path, twice)
    assert files_of(tmp_path) == undisturbed


def test_a_unit_travels_with_its_own_images_only(requests, undisturbed, tmp_path):
    def far_away(chunks, feature_writer, on_views):
        for chunk in chunks:
            own, rows = chunk.alone()
            piece = feature_writer.source.part(rows)
            assert len(piece.digests) == len(rows) < NUM_IMAGES
            sent = pickle.loads(pickle.dumps((own, piece)))
            list(dataclasses.replace(feature_writer, source=sent[1]).compute([sent[0]]))
            yield chunk

    plain = make_source(NUM_IMAGES)
    with Cache(tmp_path / "pixels").opened(PIXELS) as (entry,):
        for start in range(0, NUM_IMAGES, 40):
            part = slice(start, start + 40)
            entry.append(plain.digests[part], plain.examples.pixels[part])
        stored = entry.rows(plain.digests)
    examples = dataclasses.replace(plain.examples, pixels=stored)
    source = dataclasses.replace(plain, examples=examples)
    run(requests, tmp_path / "features", far_away, source)
    assert files_of(tmp_path / "features") == undisturbed


def test_a_unit_claimed_but_not_done_is_told(requests, tmp_path):
    def idle(chunks, feature_writer, on_views):
        yield from chunks

    with pytest.raises(RunError, match="not the expected one") as raised:
        run(requests, tmp_path, idle)
    assert "is missing" in raised.value.received


def test_a_unit_done_twice_is_told(requests, tmp_path):
    def confused(chunks, feature_writer, on_views):
        for chunk in feature_writer.compute(chunks):
            yield chunk
            yield chunk

    with pytest.raises(RunError, match="rows that are in another shard"):
        run(requests, tmp_path, confused)


def test_a_shard_that_arrived_damaged_is_told_and_computed_by_the_next(
    requests, undisturbed, tmp_path, flip
):
    def careless(chunks, feature_writer, on_views):
        for number, chunk in enumerate(feature_writer.compute(chunks)):
            if number == 1:
                flip(
                    chunk.folder / chunk.cache_keys[1].id / f"shard-{chunk.targets[1].number}.bin",
                    99,
                )
            yield chunk

    with pytest.raises(RunError, match="not complete"):
        run(requests, tmp_path, careless)
    run(requests, tmp_path)
    assert files_of(tmp_path) == undisturbed


def test_a_crew_is_called_where_nothing_is_missing(requests, tmp_path):
    run(requests, tmp_path)
    called = []

    def compute_nothing(chunks, feature_writer, on_views):
        called.append(list(chunks))
        return iter(())

    _, stats = run(requests, tmp_path, compute_nothing)
    assert called == [[]]
    assert stats.num_found == 3 * NUM_IMAGES


def test_two_phases_at_one_cut_share_an_entry(requests, tmp_path):
    few, many = (Request(requests[0].cut, wanted(NUM_IMAGES, views)) for views in (1, 2))
    (one, other), stats = run([few, many], tmp_path)
    assert stats.num_computed == 2 * NUM_IMAGES
    assert (len(one.rows), len(other.rows)) == (NUM_IMAGES, 2 * NUM_IMAGES)
    np.testing.assert_array_equal(one.read([5], [0]), other.read([5], [0]))


def test_units_are_whole_batches_and_not_too_many_views():
    gaps = [Gap(RECIPE, wanted(5000, 2), itertools.count())]
    chunks = split_into_chunks(
        gaps, folder=Path("store"), way=("float32", 32), shard_bytes=32_000_000
    )
    assert [len(chunk) for chunk in chunks] == [CHUNK_VIEWS, CHUNK_VIEWS, 10_000 - 2 * CHUNK_VIEWS]
    small = split_into_chunks(gaps, folder=Path("store"), way=("float32", 32), shard_bytes=1)
    assert {len(chunk) for chunk in small[:-1]} == {32}
    np.testing.assert_array_equal(np.concatenate([chunk.pairs for chunk in small]), wanted(5000, 2))


def test_shards_get_the_lowest_free_numbers_where_an_entry_lacks_something():
    plain = wanted(64, 1)
    gaps = [
        Gap(RECIPE, plain[40:], iter([1, 5])),
        Gap(RECIPE, plain, iter([0, 2])),
    ]
    first, second = split_into_chunks(
        gaps, folder=Path("store"), way=("float32", 32), shard_bytes=1
    )
    assert [(t.output, t.number) for t in first.targets] == [(1, 0)]
    assert [(t.output, t.number) for t in second.targets] == [(0, 1), (1, 2)]
    np.testing.assert_array_equal(second.pairs_of(second.targets[0]), plain[40:])
