"""Shards and rows: every flipped bit is found, and rows index as an array does."""

import concurrent.futures
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_transfer.errors import RunError
from keras_transfer.storage.shards import (
    Rows,
    explained,
    read_sealed,
    read_shard,
    remove_shard,
    shard_numbers,
    write_sealed,
    write_shard,
)


def some_rows(folder: Path, *, num_shards: int = 3) -> tuple[Rows, np.ndarray]:
    """Rows gathered in disorder, and the same as an array."""
    shape, generator = (5, 2), np.random.default_rng(0)
    data = generator.normal(size=(num_shards, 7, *shape)).astype(np.float16)
    shards = [
        write_shard(folder, n, entry="e", keys=[f"{n}:{i}" for i in range(7)], rows=data[n])
        for n in range(num_shards)
    ]
    where = np.stack([generator.integers(0, num_shards, 40), generator.integers(0, 7, 40)], axis=1)
    files = [shard.data_file for shard in shards]
    rows = Rows(files, where, shape=shape, dtype=np.dtype("float16"))
    return rows, data[where[:, 0], where[:, 1]]


def test_a_shard_comes_back_as_it_was_written(tmp_path: Path):
    rows = np.arange(12, dtype=np.int32).reshape(3, 4)
    written = write_shard(tmp_path, 4, entry="e", keys=["a", "b", "c"], rows=rows[:, ::2])
    assert read_shard(tmp_path, 4, entry="e") == written
    assert written.damage() == ""
    assert written.data_file.read_bytes() == np.ascontiguousarray(rows[:, ::2]).tobytes()
    assert shard_numbers(tmp_path) == [4]
    remove_shard(tmp_path, 4)
    assert not list(tmp_path.iterdir())


def test_a_shard_of_another_entry_is_refused(tmp_path: Path):
    write_shard(tmp_path, 0, entry="e", keys=["a"], rows=np.zeros((1, 4)))
    with pytest.raises(ValueError, match="belongs to other rows"):
        read_shard(tmp_path, 0, entry="f")


def test_every_bit_of_a_sealed_file_counts(tmp_path: Path, flip):
    file = tmp_path / "note.json"
    content = {"name": "naïve", "values": [1, 0.1, None, True], "more": {"deep": "x"}}
    write_sealed(file, content)
    assert read_sealed(file) == content
    for bit in range(8 * file.stat().st_size):
        flip(file, bit)
        with pytest.raises(ValueError, match="has changed"):
            read_sealed(file)
        flip(file, bit)
    assert read_sealed(file) == content
    with pytest.raises(ValueError, match="missing"):
        read_sealed(tmp_path / "other.json")


def test_every_bit_of_the_data_counts(tmp_path: Path, flip):
    shard = write_shard(tmp_path, 0, entry="e", keys=["a"], rows=np.zeros((1, 20), np.float32))
    for bit in range(8 * shard.num_bytes):
        flip(shard.data_file, bit)
        assert "has changed" in shard.damage()
        flip(shard.data_file, bit)
    assert shard.damage() == ""
    shard.data_file.write_bytes(shard.data_file.read_bytes()[:-1])
    assert "79 instead of 80 bytes" in shard.damage()
    shard.data_file.unlink()
    assert "missing" in shard.damage()


@pytest.mark.parametrize(
    "index",
    [
        3,
        -1,
        np.int64(5),
        slice(None),
        slice(30, 5, -3),
        slice(7, 7),
        [0, 39, 0, -2],
        np.array([], int),
        np.arange(6).reshape(2, 3),
        np.arange(40) % 3 == 0,
    ],
    ids=str,
)
def test_rows_index_as_an_array_does(tmp_path: Path, index):
    rows, array = some_rows(tmp_path)
    taken = rows[index]
    assert taken.dtype == array.dtype
    np.testing.assert_array_equal(taken, array[index], strict=True)


def test_rows_look_like_an_array(tmp_path: Path):
    rows, array = some_rows(tmp_path)
    assert (rows.shape, rows.dtype, rows.nbytes) == (array.shape, array.dtype, array.nbytes)
    assert len(rows) == len(list(rows)) == 40
    np.testing.assert_array_equal(np.asarray(rows), array, strict=True)
    np.testing.assert_array_equal(np.asarray(rows, np.float64), array.astype(np.float64))
    with pytest.raises(ValueError, match="a copy is always needed"):
        np.array(rows, copy=False)
    with pytest.raises(IndexError):
        rows[40]


def test_rows_are_copies(tmp_path: Path):
    rows, array = some_rows(tmp_path)
    rows[5:9][...] = 0
    rows[0][...] = 0
    np.testing.assert_array_equal(rows, array)


def test_rows_may_be_single_numbers(tmp_path: Path):
    shard = write_shard(tmp_path, 0, entry="e", keys=["a", "b"], rows=np.array([1.5, 2.5]))
    rows = Rows([shard.data_file], np.array([[0, 1], [0, 0]]), shape=(), dtype=np.dtype(float))
    assert rows[:].tolist() == [2.5, 1.5]
    assert rows[0] == 2.5


def test_rows_outlive_their_files(tmp_path: Path):
    rows, array = some_rows(tmp_path)
    for number in shard_numbers(tmp_path):
        remove_shard(tmp_path, number)
    np.testing.assert_array_equal(rows, array)
    rows.release()
    np.testing.assert_array_equal(rows, array)


def test_rows_are_read_by_several_threads(tmp_path: Path):
    rows, array = some_rows(tmp_path)

    def read(seed: int) -> bool:
        places = np.random.default_rng(seed).integers(0, 40, 300)
        if seed % 10 == 0:
            rows.release()
        return np.array_equal(rows[places], array[places])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(100)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_release_gives_memory_back(tmp_path: Path):
    data = np.ones((64, 1 << 16), np.uint8)
    shard = write_shard(tmp_path, 0, entry="e", keys=[str(i) for i in range(64)], rows=data)
    where = np.stack([np.zeros(64, int), np.arange(64)], axis=1)
    rows = Rows([shard.data_file], where, shape=(1 << 16,), dtype=np.dtype("uint8"))

    def resident() -> int:
        maps = Path("/proc/self/smaps").read_text().split(str(shard.data_file))[1]
        return int(maps.split("Rss:")[1].split()[0]) * 1024

    rows[:]
    assert resident() == data.nbytes
    rows.release()
    assert resident() == 0
    np.testing.assert_array_equal(rows, data)


def test_explained_names_the_fields_of_the_cache(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"cache\.folder.*cache\.mode=off") as told,
        explained(tmp_path / "file"),
    ):
        (tmp_path / "file" / "folder").mkdir()
    assert "Not a directory" in told.value.received
    assert str(tmp_path / "file") in told.value.what
