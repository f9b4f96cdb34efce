"""Entries: rows by content, whatever is damaged found and made again, nothing stale."""

import hashlib
import random
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from keras_transfer.errors import RunError
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.entry import CacheKey

KEYS = [f"{number:03d}" for number in range(60)]


def folder_of(cache: Cache, cache_key: CacheKey) -> Path:
    return cache.folder / cache_key.digest[:16]


def test_missing_names_the_first_of_equal_keys_until_they_are_stored(tmp_path, cache_key, make):
    with Cache(tmp_path).opened(cache_key()) as (entry,):
        assert entry.missing([]) == []
        assert entry.missing(["a", "b", "a", "c"]) == [0, 1, 3]
        entry.append(["b"], make(["b"]))
        assert entry.missing(["a", "b", "a", "c"]) == [0, 3]
        entry.append([], make(["a"])[:0])
        entry.append(["c", "a"], make(["c", "a"]))
        assert entry.missing(["a", "b", "a", "c"]) == []


def test_rows_come_back_in_any_order_in_another_opening(tmp_path, cache_key, make, fill):
    assert len(fill(Cache(tmp_path), cache_key(), KEYS, size=7)) == 60
    wanted = random.Random(0).choices(KEYS, k=200)
    with Cache(tmp_path).opened(cache_key()) as (entry,):
        assert entry.missing(wanted) == []
        rows = entry.rows(wanted)
        few = entry.rows(["007"])
        none = entry.rows([])
    np.testing.assert_array_equal(rows, make(wanted), strict=True)
    np.testing.assert_array_equal(few, make(["007"]), strict=True)
    assert none.shape == (0, 4, 8, 3)
    assert none[:].shape == (0, 4, 8, 3)


def test_anything_else_in_the_recipe_is_another_entry(tmp_path, fill):
    whole = {"kind": "features", "content": {"a": {"b": 1}}, "shape": (4, 8, 3), "dtype": "uint8"}
    changes = [
        {},
        {"kind": "pixels"},
        {"content": {"a": {"b": 2}}},
        {"content": {"a": {"b": "1"}}},
        {"content": {"a": {"c": 1}}},
        {"content": {"a": {"b": 1}, "d": None}},
        {"shape": (8, 4, 3)},
        {"dtype": "int8"},
    ]
    cache_keys = [CacheKey(**{**whole, **change, "title": "t"}) for change in changes]
    assert len({cache_key.digest for cache_key in cache_keys}) == len(changes)
    with Cache(tmp_path).opened(*cache_keys) as entries:
        entries[0].append(["k"], np.zeros((1, 4, 8, 3), np.uint8))
        assert [entry.missing(["k"]) for entry in entries] == [[]] + [[0]] * (len(changes) - 1)


def test_the_digest_ignores_the_title_and_the_order_of_names():
    one = CacheKey("features", "one", {"a": (1, 2), 10: 0.1, 9: "x"}, (3,), "float16")
    two = CacheKey("features", "two", {"9": "x", "10": 0.1, "a": [1, 2]}, (3,), "float16")
    assert one.digest == two.digest
    assert len(one.digest) == 64


def test_notes_are_kept_with_the_entry(tmp_path, cache_key):
    with Cache(tmp_path).opened(cache_key()) as (entry,):
        assert entry.notes == {}
        entry.note(batch_size=32)
        entry.note(precision="bfloat16", factors=[1, 0.5])
    with Cache(tmp_path).opened(cache_key(), cache_key(other=1)) as (entry, other):
        assert entry.notes == {"batch_size": 32, "precision": "bfloat16", "factors": [1, 0.5]}
        assert other.notes == {}


@pytest.mark.parametrize(
    ("file", "lost"), [("shard-2.bin", 10), ("shard-2.json", 10), ("entry.json", 60)]
)
def test_a_flipped_bit_is_found_told_and_repaired(
    tmp_path, cache_key, fill, heard, flip, file, lost
):
    cache = Cache(tmp_path, say=heard.append)
    fill(cache, cache_key(), KEYS)
    target = folder_of(cache, cache_key()) / file
    generator = random.Random(file)
    for _ in range(30):
        heard.clear()
        flip(target, generator.randrange(8 * target.stat().st_size))
        assert len(fill(cache, cache_key(), KEYS, size=60 if lost == 60 else 10)) == lost
        assert len(heard) == 1
        assert f"{target.parent.name}/shard-" in heard[0] or lost == 60
        assert file in heard[0]
        shards = sorted(target.parent.glob("shard-*.bin"))
        target = shards[-1].with_suffix(target.suffix) if lost == 10 else target
        file = target.name
    assert fill(cache, cache_key(), KEYS) == []


def truncate(folder: Path) -> None:
    with (folder / "shard-1.bin").open("r+b") as file:
        file.truncate(17)


def empty(folder: Path) -> None:
    (folder / "shard-1.bin").write_bytes(b"")


def lengthen(folder: Path) -> None:
    with (folder / "shard-1.bin").open("ab") as file:
        file.write(b"x")


def exchange(folder: Path) -> None:
    shutil.copy(folder / "shard-0.bin", folder / "shard-1.bin")


def lose_data(folder: Path) -> None:
    (folder / "shard-1.bin").unlink()


def lose_keys(folder: Path) -> None:
    (folder / "shard-1.json").unlink()


def truncate_keys(folder: Path) -> None:
    with (folder / "shard-1.json").open("r+b") as file:
        file.truncate(40)


def confuse_keys(folder: Path) -> None:
    shutil.copy(folder / "entry.json", folder / "shard-1.json")


@pytest.mark.parametrize(
    "hurt",
    [truncate, empty, lengthen, exchange, lose_data, lose_keys, truncate_keys, confuse_keys],
)
def test_a_shard_that_is_not_whole_is_made_again(tmp_path, cache_key, fill, heard, hurt):
    cache = Cache(tmp_path, say=heard.append)
    fill(cache, cache_key(), KEYS)
    hurt(folder_of(cache, cache_key()))
    assert fill(cache, cache_key(), KEYS) == list(range(10, 20))
    assert len(heard) == 1
    assert "shard-1 of the stored features of {} is damaged (shard-1." in heard[0]
    assert fill(cache, cache_key(), KEYS) == []
    assert len(heard) == 1


def test_only_shards_with_wanted_rows_are_read(tmp_path, cache_key, fill, heard):
    cache = Cache(tmp_path, say=heard.append)
    fill(cache, cache_key(), KEYS)
    truncate(folder_of(cache, cache_key()))
    assert fill(cache, cache_key(), KEYS[20:]) == []
    assert heard == []
    assert len(fill(cache, cache_key(), KEYS[19:])) == 1


def test_rows_that_were_not_checked_are_not_returned(tmp_path, cache_key, fill):
    fill(Cache(tmp_path), cache_key(), KEYS)
    with Cache(tmp_path).opened(cache_key()) as (entry,):
        entry.missing(KEYS[:10])
        assert len(entry.rows(KEYS[:10])) == 10
        with pytest.raises(AssertionError, match="call `missing` first"):
            entry.rows(KEYS)


@pytest.mark.parametrize("file", ["entry.json", "shard-0.json"])
def test_files_of_another_entry_are_not_believed(tmp_path, cache_key, fill, heard, file):
    cache = Cache(tmp_path, say=heard.append)
    fill(cache, cache_key(a=1), KEYS, size=60)
    fill(cache, cache_key(a=2), KEYS, size=60)
    shutil.copy(folder_of(cache, cache_key(a=1)) / file, folder_of(cache, cache_key(a=2)) / file)
    assert len(fill(cache, cache_key(a=2), KEYS)) == 60
    assert len(heard) == 1
    assert "other" in heard[0]


def test_an_entry_without_description_is_started_again(tmp_path, cache_key, fill, heard):
    cache = Cache(tmp_path, say=heard.append)
    fill(cache, cache_key(), KEYS)
    with cache.opened(cache_key()) as (entry,):
        entry.note(batch_size=3)
    (folder_of(cache, cache_key()) / "entry.json").unlink()
    with cache.opened(cache_key()) as (entry,):
        assert entry.notes == {}
        assert len(entry.missing(KEYS)) == 60
    assert "entry.json is missing" in heard[0]


def test_an_entry_killed_at_its_start_is_no_damage(tmp_path, cache_key, fill, heard):
    cache = Cache(tmp_path, say=heard.append)
    folder_of(cache, cache_key()).mkdir()
    (folder_of(cache, cache_key()) / "entry.partial.json").write_text("{")
    assert len(fill(cache, cache_key(), KEYS)) == 60
    assert heard == []


def test_what_a_killed_writer_left_is_removed(tmp_path, cache_key, fill, heard):
    cache = Cache(tmp_path, say=heard.append)
    fill(cache, cache_key(), KEYS)
    folder = folder_of(cache, cache_key())
    before = sorted(path.name for path in folder.iterdir())
    for name in ("shard-6.partial.bin", "shard-6.partial.json", "entry.partial.json"):
        (folder / name).write_text("half")
    assert fill(cache, cache_key(), KEYS) == []
    assert sorted(path.name for path in folder.iterdir()) == before
    assert heard == []


def test_a_full_disk_leaves_the_store_whole(tmp_path, cache_key, make, fill):
    fill(Cache(tmp_path), cache_key(), KEYS)
    before = sorted(path.name for path in folder_of(Cache(tmp_path), cache_key()).iterdir())
    data = [f"data {number}" for number in range(100)]
    names = [f"{number:0200d}" for number in range(30)]
    with Cache(tmp_path).opened(cache_key()) as (entry,):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            # The data are too large, or the data fit and the list of their keys does not.
            for keys in (data, names):
                with pytest.raises(RunError, match="disk is full") as failure:
                    entry.append(keys, make(keys))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        for part in ("free some space", "cache.folder", "cache.mode=off", "MB are free at"):
            assert part in str(failure.value)
        assert (
            sorted(path.name for path in folder_of(Cache(tmp_path), cache_key()).iterdir())
            == before
        )
        assert len(entry.missing([*KEYS, *data])) == 100
        entry.append(data, make(data))
    assert fill(Cache(tmp_path), cache_key(), [*KEYS, *data]) == []


def test_80_000_keys_are_found_and_gathered(tmp_path):
    cache_key = CacheKey("features", "many", {}, (4,), "float32")
    keys = [
        f"{hashlib.sha256(bytes([n % 256, n // 256])).hexdigest()}:{view}"
        for n in range(20_000)
        for view in range(4)
    ]
    values = np.arange(320_000, dtype=np.float32).reshape(80_000, 4)
    with Cache(tmp_path).opened(cache_key) as (entry,):
        for first in range(0, 80_000, 2000):
            entry.append(keys[first : first + 2000], values[first : first + 2000])
    order = np.random.default_rng(0).permutation(80_000)
    shuffled = [keys[place] for place in order]
    began = time.process_time()
    with Cache(tmp_path).opened(cache_key) as (entry,):
        assert entry.missing([*shuffled, "other"]) == [80_000]
        rows = entry.rows(shuffled)
    assert time.process_time() - began < 5  # Some 0.4 s; searching in lists would take minutes.
    for places in (np.arange(32), np.random.default_rng(1).integers(0, 80_000, 32)):
        np.testing.assert_array_equal(rows[places], values[order[places]], strict=True)
    np.testing.assert_array_equal(rows, values[order], strict=True)
