"""The cache: several processes, kills at any moment, a limit, and folders that move."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from keras_transfer.errors import RunError
from keras_transfer.storage.cache import Cache

KEYS = [f"{number:03d}" for number in range(40)]
ENTRY_BYTES = 40 * 96
"""Bytes of the rows of all keys; their files take up to 2 kB more."""


def ids(cache: Cache) -> list[str]:
    return sorted(info.id for info in cache.entries())


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fill_in_turn(cache: Cache, cache_keys, fill) -> None:
    """Fill entries, each used a while after the one before it."""
    for cache_key in cache_keys:
        fill(cache, cache_key, KEYS)
        time.sleep(0.02)


def test_two_processes_compute_once_and_one_of_them_waits(tmp_path, cache_key, make, child):
    program = """
        keys = [f"{number:03d}" for number in range(40)]
        say("ready")
        sys.stdin.readline()
        with Cache(folder, say=say).opened(cache_key()) as (entry,):
            missing = entry.missing(keys)
            time.sleep(0.5)
            if missing:
                entry.append(keys, make(keys))
            say(f"computed {len(missing)}")
            rows = entry.rows(keys)
        assert (rows[:] == make(keys)).all()
        say("equal")
    """
    processes = [child(program, tmp_path) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = sorted(process.communicate(timeout=60)[0].splitlines() for process in processes)
    waiting = "Waiting for another process that uses the stored features of {}"
    assert told == [[waiting, "computed 0", "equal"], ["computed 40", "equal"]]


def test_waiting_ends_when_the_holder_is_killed_or_with_ctrl_c(tmp_path, cache_key, child):
    hold = """
        with Cache(folder, say=say).opened(cache_key(), cache_key(b=1)):
            say("holding")
            time.sleep(60)
    """
    wait = hold.replace("cache_key(), ", "")
    holder = child(hold, tmp_path)
    assert holder.stdout.readline() == "holding\n"
    waiters = [child(wait, tmp_path) for _ in range(2)]
    for waiter in waiters:
        assert waiter.stdout.readline().startswith("Waiting for another process")
    waiters[0].send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in waiters[0].communicate(timeout=60)[1]
    assert waiters[1].poll() is None
    holder.kill()
    assert waiters[1].stdout.readline() == "holding\n"
    for process in (holder, waiters[1]):
        process.kill()
        process.communicate()
    with Cache(tmp_path).opened(cache_key(), cache_key(b=1)):
        pass


def test_who_waits_holds_nothing_that_comes_later(tmp_path, cache_key, child):
    """Locks have one order, whatever the order of the cache keys: two processes cannot deadlock."""
    numbers = sorted(range(4), key=lambda number: cache_key(number=number).digest)
    program = f"""
        cache_keys = [cache_key(number=number) for number in {numbers[::-1]}]
        with Cache(folder, say=say).opened(*cache_keys) as entries:
            assert [entry.cache_key for entry in entries] == cache_keys
            say("opened")
    """
    cache = Cache(tmp_path)
    with cache.opened(cache_key(number=numbers[0])):
        waiter = child(program, tmp_path)
        assert waiter.stdout.readline().startswith("Waiting for another process")
        for number in numbers[1:]:
            assert cache.remove(cache_key(number=number).digest[:16])
    assert waiter.communicate(timeout=60) == ("opened\n", "")


def test_the_store_is_whole_after_a_kill_at_any_moment(tmp_path):
    program = """
        import hashlib, os, random, signal, sys, time
        from pathlib import Path
        import numpy as np
        from keras_transfer.storage.entry import CacheKey
        from keras_transfer.storage.cache import Cache

        cache_key = CacheKey("features", "rows", {}, (50_000,), "uint8")

        def make(keys):
            digests = [hashlib.shake_128(key.encode()).digest(50_000) for key in keys]
            return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 50_000)

        def append_forever(store, known, report):
            for number in range(10**6):
                with store.opened(cache_key) as (entry,):
                    keys = [f"{known + 4 * number + i}" for i in range(4)]
                    entry.note(number=number)
                    entry.append(keys, make(keys))
                os.write(report, b"x")

        heard, known = [], 0
        generator = random.Random(0)
        for moment in range(25):
            store = Cache(Path(sys.argv[1]), say=heard.append)
            read, write = os.pipe()
            child = os.fork()
            if not child:
                append_forever(store, known, write)
            os.close(write)
            time.sleep(generator.uniform(0, 0.08))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            promised = len(os.read(read, 10**6))
            os.close(read)
            with store.opened(cache_key) as (entry,):
                keys = [str(number) for number in range(known + 4 * promised + 4)]
                known = len(keys) - len(entry.missing(keys))
                assert known in (len(keys) - 4, len(keys)), (known, len(keys))
                assert (entry.rows(keys[:known])[:] == make(keys[:known])).all()
            assert not list(store.folder.rglob("*partial*"))
        # The list of keys follows the data: a kill in between is the only thing to be told.
        assert all("json is missing" in text for text in heard), heard
        print(known)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_the_least_recently_used_entries_make_room(tmp_path, cache_key, fill, heard):
    cache = Cache(tmp_path, limit_bytes=4 * ENTRY_BYTES + 8000, say=heard.append)
    cache_keys = [cache_key(number=number) for number in range(5)]
    fill_in_turn(cache, [*cache_keys[:4], cache_keys[0]], fill)
    assert heard == []
    assert fill(cache, cache_keys[4], KEYS) == list(range(40))
    assert ids(cache) == sorted(cache_keys[number].digest[:16] for number in (0, 2, 3, 4))
    assert len(heard) == 1
    assert "features of {'number': 1}" in heard[0]
    assert sum(info.num_bytes for info in cache.entries()) <= 4 * ENTRY_BYTES + 8000
    assert len(fill(cache, cache_keys[1], KEYS)) == 40
    assert "features of {'number': 2}" in heard[1]
    assert fill(cache, cache_keys[0], KEYS) == []


def test_what_another_process_works_on_is_never_removed(tmp_path, cache_key, fill, child, heard):
    cache = Cache(tmp_path, limit_bytes=3 * ENTRY_BYTES + 6000, say=heard.append)
    cache_keys = [cache_key(number=number) for number in range(4)]
    fill_in_turn(cache, cache_keys[:3], fill)
    program = """
        with Cache(folder).opened(cache_key(number=0)):
            say("holding")
            sys.stdin.readline()
    """
    holder = child(program, tmp_path)
    assert holder.stdout.readline() == "holding\n"
    held = max(info.num_bytes for info in cache.entries())
    assert cache.free_for(cache_keys[3]) in range(
        3 * ENTRY_BYTES + 6000 - held, 3 * ENTRY_BYTES + 6000 - ENTRY_BYTES
    )
    fill(cache, cache_keys[3], KEYS)
    assert ids(cache) == sorted(cache_keys[number].digest[:16] for number in (0, 2, 3))
    assert cache.remove(cache_keys[0].digest[:16]) is False
    assert cache.verify(cache_keys[0].digest[:16]) is None
    holder.communicate("done\n", timeout=60)
    assert cache.remove(cache_keys[0].digest[:16]) is True
    assert ids(cache) == sorted(cache_keys[number].digest[:16] for number in (2, 3))


def test_entries_opened_together_do_not_make_room_for_each_other(tmp_path, cache_key, make):
    cache = Cache(tmp_path, limit_bytes=2 * ENTRY_BYTES)
    with cache.opened(cache_key(a=1), cache_key(a=2)) as (one, two):
        one.append(KEYS, make(KEYS))
        with pytest.raises(RunError, match=r"reached its limit(.|\n)*raise cache\.limit_gb"):
            two.append(KEYS, make(KEYS))
        assert len(two.missing(KEYS)) == 40
        np.testing.assert_array_equal(one.rows(KEYS), make(KEYS))


def test_nothing_is_removed_in_vain(tmp_path, cache_key, make, fill, heard):
    cache = Cache(tmp_path, limit_bytes=2 * ENTRY_BYTES, say=heard.append)
    fill(cache, cache_key(old=1), KEYS)
    many = [str(number) for number in range(100)]
    with cache.opened(cache_key()) as (entry,), pytest.raises(RunError, match="reached its limit"):
        entry.append(many, make(many))
    assert fill(cache, cache_key(old=1), KEYS) == []
    assert heard == []


def test_rows_outlive_the_removal_of_their_entry(tmp_path, cache_key, make, fill):
    cache = Cache(tmp_path)
    fill(cache, cache_key(), KEYS)
    with cache.opened(cache_key()) as (entry,):
        entry.missing(KEYS)
        rows = entry.rows(KEYS)
    assert cache.remove(cache_key().digest[:16])
    rows.release()
    np.testing.assert_array_equal(rows, make(KEYS))
    assert cache.entries() == []
    assert len(fill(cache, cache_key(), KEYS)) == 40


def test_free_for_counts_what_may_go(tmp_path, cache_key, fill):
    assert Cache(tmp_path / "new" / "deep", limit_bytes=1000).free_for(cache_key()) == 1000
    assert not (tmp_path / "new").exists()
    fill(Cache(tmp_path), cache_key(a=1), KEYS)
    fill(Cache(tmp_path), cache_key(a=2), KEYS)
    assert Cache(tmp_path, limit_bytes=9000).free_for(cache_key(a=1)) == 9000
    assert Cache(tmp_path, limit_bytes=10**18).free_for(cache_key(a=1)) < 10**17
    cache = Cache(tmp_path, limit_bytes=9000)
    with cache.opened(cache_key(a=1), cache_key(a=2)):
        assert 9000 - ENTRY_BYTES - 2000 < cache.free_for(cache_key(a=1)) < 9000 - ENTRY_BYTES
        assert cache.free_for(cache_key(a=1), cache_key(a=2)) == 9000


def test_entries_in_use_are_looked_for_only_where_room_is_short(
    tmp_path, cache_key, fill, monkeypatch
):
    fill(Cache(tmp_path), cache_key(a=1), KEYS)
    fill(Cache(tmp_path), cache_key(a=2), KEYS)
    tried = []
    monkeypatch.setattr(Cache, "_is_free", lambda _, name: tried.append(name) or True)
    cache = Cache(tmp_path, limit_bytes=9000)
    beside_the_other = cache.free_for(cache_key(a=1), enough=1000)
    assert 9000 - ENTRY_BYTES - 2000 < beside_the_other < 9000 - ENTRY_BYTES
    assert tried == []
    assert cache.free_for(cache_key(a=1), enough=beside_the_other + 1) == 9000
    assert tried == [cache_key(a=2).id]


def test_a_moved_store_has_everything(tmp_path, cache_key, fill, heard):
    fill(Cache(tmp_path / "here"), cache_key(), KEYS)
    (tmp_path / "far").mkdir()
    (tmp_path / "here").rename(tmp_path / "far" / "there")
    assert fill(Cache(tmp_path / "far" / "there", say=heard.append), cache_key(), KEYS) == []
    assert heard == []
    assert str(tmp_path).encode() not in b"".join(
        path.read_bytes() for path in (tmp_path / "far").rglob("*.json")
    )


def test_a_relative_folder_stays_where_it_was(tmp_path, cache_key, make, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = Cache(Path("store"))
    (tmp_path / "elsewhere").mkdir()
    with cache.opened(cache_key()) as (entry,):
        monkeypatch.chdir(tmp_path / "elsewhere")
        entry.append(KEYS, make(KEYS))
    assert cache.entries()[0].rows == 40
    assert not list((tmp_path / "elsewhere").iterdir())


def test_entries_tell_what_is_stored_and_leave_other_folders_alone(tmp_path, cache_key, fill):
    cache = Cache(tmp_path / "store", limit_bytes=ENTRY_BYTES + 2000)
    assert cache.entries() == []
    before = time.time() - 1
    fill(cache, cache_key(), KEYS)
    for name in ("photos", "0123456789abcdefg", "0123456789abcdef"):
        (cache.folder / name).mkdir()
        (cache.folder / name / "shard-0.bin").write_bytes(b"x" * 10_000)
    (info,) = cache.entries()
    assert (info.id, info.kind) == (cache_key().digest[:16], "features")
    assert (info.title, info.rows) == ("features of {}", 40)
    folder = cache.folder / info.id
    assert info.num_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert before < info.used <= time.time() + 1
    fill(cache, cache_key(more=1), KEYS)
    assert [info.title for info in cache.entries()] == ["features of {'more': 1}"]
    assert len(list(cache.folder.glob("*/shard-0.bin"))) == 4


def test_remains_of_a_killed_removal_are_swept(tmp_path, cache_key, fill):
    cache = Cache(tmp_path)
    fill(cache, cache_key(), KEYS)
    before = files_below(tmp_path)
    for name in (cache_key().digest[:16], "0123456789abcdef"):
        (tmp_path / f"{name}.removed").mkdir()
        (tmp_path / f"{name}.removed" / "shard-0.bin").write_text("x")
    assert cache.remove(cache_key().digest[:16])
    fill(cache, cache_key(), KEYS)
    assert files_below(tmp_path) == before


def test_verify_names_and_removes_what_is_damaged(tmp_path, cache_key, fill, heard, flip):
    cache = Cache(tmp_path, say=heard.append)
    fill(cache, cache_key(a=1), KEYS)
    fill(cache, cache_key(a=2), KEYS)
    one, two = (cache_key(a=number).digest[:16] for number in (1, 2))
    used = {info.id: info.used for info in cache.entries()}
    assert cache.verify(one) == cache.verify(two) == 0
    assert {info.id: info.used for info in cache.entries()} == used
    flip(tmp_path / one / "shard-0.bin", 5)
    flip(tmp_path / one / "shard-2.json", 50)
    flip(tmp_path / two / "entry.json", 50)
    assert [info.rows for info in cache.entries() if info.id == two] == [0]
    assert (cache.verify(one), cache.verify(two)) == (2, 1)
    assert [text.split()[0] for text in heard] == [f"{one}/shard-2", f"{one}/shard-0", two]
    assert ids(cache) == [one]
    assert fill(cache, cache_key(a=1), KEYS) == [*range(10), *range(20, 30)]


def test_an_entry_without_its_description_is_listed_verified_and_removed(tmp_path, cache_key, fill):
    cache = Cache(tmp_path)
    for number in (1, 2):
        fill(cache, cache_key(a=number), KEYS)
        (tmp_path / cache_key(a=number).digest[:16] / "entry.json").unlink()
    one, two = (cache_key(a=number).digest[:16] for number in (1, 2))
    assert sorted(ids(cache)) == sorted([one, two])
    assert cache.verify(one) == 1
    assert cache.remove(two)
    assert ids(cache) == []
    assert not list(tmp_path.rglob("shard-*"))


def test_a_folder_that_cannot_be_made_names_the_field(tmp_path, cache_key):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "store")
    assert cache.entries() == []
    with (
        pytest.raises(RunError, match=r"cache\.folder.*cache\.mode=off"),
        cache.opened(cache_key()),
    ):
        pass


def test_a_folder_without_permission_names_the_field(tmp_path, child):
    program = """
        if os.geteuid() == 0:
            os.setuid(65534)  # Root may write anywhere, nobody may not.
        try:
            with Cache(folder / "store").opened(cache_key()):
                pass
        except ValueError as error:
            say(error)
    """
    tmp_path.chmod(0o500)
    told, errors = child(program, tmp_path).communicate(timeout=60)
    assert errors == ""
    for part in ("cannot be used", "Permission denied", "cache.folder", "cache.mode=off"):
        assert part in told


def test_an_error_of_the_block_passes_unchanged_and_frees_the_lock(tmp_path, cache_key):
    error = RunError("something else")
    with pytest.raises(RunError) as raised, Cache(tmp_path).opened(cache_key()):
        raise error
    assert raised.value is error
    with Cache(tmp_path).opened(cache_key(), cache_key()) as (one, two):
        assert one is two
