"""Checksums: every change of a verified file is found, and all of them are named at once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from keras_transfer.errors import ExportError, RunError
from keras_transfer.storage.checksums import CHECKSUMS_FILE, verify_checksums, write_checksums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "variables").mkdir()
    for name in ("model.pb", "variables/data", "contract.json"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    write_checksums(tmp_path, ["model.pb", "variables/data", "contract.json"])
    return tmp_path


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.pb").read_bytes())
    content[100] ^= 1
    (folder / "model.pb").write_bytes(content)


def cut(folder: Path) -> None:
    (folder / "model.pb").write_bytes(b"model.pb")


def append(folder: Path) -> None:
    with (folder / "model.pb").open("ab") as file:
        file.write(b"\0")


def swap(folder: Path) -> None:
    (folder / "model.pb").write_bytes((folder / "contract.json").read_bytes())


def remove(folder: Path) -> None:
    (folder / "model.pb").unlink()


@pytest.mark.parametrize("change", [flip_a_bit, cut, append, swap, remove])
@pytest.mark.parametrize("names", [None, ["model.pb"]])
def test_changes_are_found(change: Callable[[Path], None], names, folder: Path):
    verify_checksums(folder, names)
    change(folder)
    with pytest.raises(ExportError, match="not those that were verified") as failure:
        verify_checksums(folder, names)
    assert failure.value.received.startswith("model.pb: ")
    verify_checksums(folder, ["contract.json"])


def test_all_changes_are_named_and_the_error_is_the_callers(folder: Path):
    flip_a_bit(folder)
    (folder / "variables/data").unlink()
    with pytest.raises(RunError) as failure:
        verify_checksums(folder, error=RunError, fix="train again")
    assert "model.pb: other content of the same size" in failure.value.received
    assert "variables/data: missing" in failure.value.received
    assert failure.value.fix == "train again"


def test_file_that_was_added_is_refused_where_it_is_asked_for(folder: Path):
    (folder / "other.onnx").write_bytes(b"other")
    with pytest.raises(ExportError, match="not those") as failure:
        verify_checksums(folder, ["other.onnx"])
    assert "without a checksum" in failure.value.received


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model.pb": 1}', '{"model.pb": {"bytes": 8000}}']
)
def test_damaged_checksums_are_refused(text: str, folder: Path):
    (folder / CHECKSUMS_FILE).write_text(text)
    with pytest.raises(ExportError, match="not those"):
        verify_checksums(folder, ["model.pb"])


def test_folder_without_checksums_is_not_checked(folder: Path):
    assert json.loads((folder / CHECKSUMS_FILE).read_text())["model.pb"]["bytes"] == 8000
    (folder / CHECKSUMS_FILE).unlink()
    cut(folder)
    verify_checksums(folder)


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '["model.pb"]', '{"model.pb": 1}'])
def test_a_list_without_checksums_is_refused(content: str, folder: Path):
    (folder / CHECKSUMS_FILE).write_text(content)
    with pytest.raises(ExportError, match="not those that were verified"):
        verify_checksums(folder)
