"""The verb `cache`: what is stored is shown, checked and removed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from keras_transfer.storage.cache import Cache
from keras_transfer.storage.entry import CacheKey
from pipelines import arguments, cache


def cache_key(name: str) -> CacheKey:
    return CacheKey("features", f"features of {name}", {"name": name}, (4,), "float32")


@contextmanager
def filled(folder: Path, *names: str) -> Iterator[None]:
    """While the block runs, somebody works on entries of 1,000 rows each."""
    with Cache(folder).opened(*map(cache_key, names)) as entries:
        for entry in entries:
            keys = [str(number) for number in range(1000)]
            entry.append(keys, np.zeros((1000, 4), np.float32))
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with filled(tmp_path, "robin", "wren"):
        pass
    return tmp_path


def ids(folder: Path) -> list[str]:
    return sorted(info.id for info in Cache(folder).entries())


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, without the line breaks of a narrow terminal."""
    return " ".join("".join(capsys.readouterr()).split())


def test_list_shows_every_entry_and_the_total(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cache.main(["list", "--folder", str(folder)]) == 0
    text = capsys.readouterr().out
    for name in ("robin", "wren"):
        (line,) = (line for line in text.splitlines() if f"features of {name}" in line)
        assert cache_key(name).digest[:16] in line
        assert "1,000" in line
    total = sum(path.stat().st_size for path in folder.glob("*/*"))
    assert f"{total / 1e6:.1f} MB in all" in text
    assert str(folder) in text


def test_list_looks_below_home_where_no_folder_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_TRANSFER_HOME", str(tmp_path))
    assert cache.main(["list"]) == 0
    # Long paths are broken into lines anywhere.
    assert f"Nothingisstoredin{tmp_path / 'features'}" in "".join(shown(capsys).split())
    assert not list(tmp_path.iterdir())
    with filled(tmp_path / "features", "robin"):
        pass
    assert cache.main(["list"]) == 0
    assert cache_key("robin").digest[:16] in shown(capsys)


def test_verify_passes_what_is_whole(folder, capsys):
    assert cache.main(["verify", "--folder", str(folder)]) == 0
    assert "Checked 2 of 2 entries" in shown(capsys)


def test_verify_names_and_removes_damage_and_ends_with_status_1(folder, capsys):
    name = cache_key("wren").digest[:16]
    with (folder / name / "shard-0.bin").open("r+b") as file:
        file.write(b"\x01")
    assert cache.main(["verify", "--folder", str(folder)]) == cache.DAMAGED
    text = shown(capsys)
    assert f"{name}/shard-0 of the stored features of wren is damaged" in text
    assert "1 damaged, now removed" in text
    assert not list((folder / name).glob("shard-*"))
    assert cache.main(["verify", "--folder", str(folder)]) == 0


def test_verify_of_one_entry_reads_no_other(folder, capsys):
    robin, wren = (cache_key(name).digest[:16] for name in ("robin", "wren"))
    (folder / wren / "shard-0.bin").write_bytes(b"")
    assert cache.main(["verify", robin, "--folder", str(folder)]) == 0
    assert cache.main(["verify", wren, "--folder", str(folder)]) == cache.DAMAGED


def test_clear_removes_what_is_named(folder, capsys):
    assert cache.main(["clear", cache_key("wren").digest[:16], "--folder", str(folder)]) == 0
    assert ids(folder) == [cache_key("robin").digest[:16]]
    assert "Removed 1 of 1 entries" in shown(capsys)
    assert cache.main(["clear", "--all", "--folder", str(folder)]) == 0
    assert ids(folder) == []


def test_what_is_in_use_is_left_alone_and_told(folder, capsys):
    name = cache_key("lark").digest[:16]
    with filled(folder, "lark"):
        assert cache.main(["verify", "--folder", str(folder)]) == 0
        assert f"{name} is in use by a run and was not checked" in shown(capsys)
        assert cache.main(["clear", "--all", "--folder", str(folder)]) == 0
        assert f"{name} is in use by a run and stays" in shown(capsys)
    assert ids(folder) == [name]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["clear"], "neither"),
        (["clear", "--all", "0123"], "both"),
        (["clear", "--folder", ".", "0123"], "there is no entry 0123"),
        (["clear", "0123"], "there is no entry 0123"),
        (["verify", "0123"], "there is no entry 0123"),
        (["list", "--folder", "nowhere"], "there is no folder"),
    ],
)
def test_wrong_words_end_with_status_2_and_remove_nothing(
    folder, capsys, monkeypatch, tmp_path_factory, words, part
):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    words = words if "--folder" in words else [*words, "--folder", str(folder)]
    assert cache.main(words) == arguments.USER_ERROR
    assert part in shown(capsys)
    assert len(ids(folder)) == 2


def test_the_verb_answers_without_keras(folder):
    code = (
        "import json, sys; from pipelines import cache\n"
        "status = cache.main(['verify', '--folder', sys.argv[1]])\n"
        "print(json.dumps([status, *{'keras', 'tensorflow', 'matplotlib'} & {*sys.modules}]))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout.splitlines()[-1]) == [0], done.stderr
