"""Listed images are found where they are now, by their content; nothing else there matters."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from keras_transfer.data.listed_images import find_listed
from keras_transfer.data.records import Record
from keras_transfer.errors import DataError
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import DataSpec

NUM_FILES = 6


def write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for number in range(NUM_FILES):
        write(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png", f"content {number}")
    return tmp_path / "photos"


LISTED = [
    Record(
        f"{'ab'[number % 2]}/{number}.png",
        ("ab"[number % 2],),
        digest=hashlib.sha256(f"content {number}".encode()).hexdigest(),
    )
    for number in range(NUM_FILES)
]


def look(place: Path, source: str = "folder") -> list[str]:
    """The contents of what is found, in the order of the list."""
    spec = DataSpec(source=source, path=str(place))
    found, root = find_listed(LISTED, spec, reporter=SilentReporter())
    assert [record.target for record in found] == [record.target for record in LISTED]
    return [(root / record.path).read_text() for record in found]


def rename_one(place: Path) -> None:
    (place / "a/0.png").rename(place / "a/renamed.png")


def swap_two(place: Path) -> None:
    (place / "a/0.png").rename(place / "a/x")
    (place / "a/2.png").rename(place / "a/0.png")
    (place / "a/x").rename(place / "a/2.png")


def rename_a_class(place: Path) -> None:
    (place / "b").rename(place / "bees")


def sort_otherwise(place: Path) -> None:
    for file in sorted(place.rglob("*.png")):
        write(place / "2024" / "all" / f"{file.stem}-copy", file.read_text())
    shutil.rmtree(place / "a")
    shutil.rmtree(place / "b")


def add_a_class(place: Path) -> None:
    write(place / "c" / "new.png", "new")
    (place / "empty").mkdir()
    write(place / "loose.txt", "text")


def leave(place: Path) -> None:
    """Nothing is changed."""


@pytest.mark.parametrize(
    "change", [leave, rename_one, swap_two, rename_a_class, sort_otherwise, add_a_class]
)
def test_images_are_found_by_content(change: Callable[[Path], None], place: Path):
    change(place)
    assert look(place) == [f"content {number}" for number in range(NUM_FILES)]


def test_place_of_a_table_is_its_folder_whether_or_not_it_is_there(place: Path):
    assert look(place / "gone.csv", source="csv") == look(place, source="csv")


def drop(place: Path) -> None:
    (place / "a/0.png").unlink()


def change_content(place: Path) -> None:
    write(place / "a/0.png", "other")


def cut(place: Path) -> None:
    write(place / "a/0.png", "cont")


def replace_by_a_folder(place: Path) -> None:
    (place / "a/0.png").unlink()
    (place / "a/0.png").mkdir()


def break_the_link(place: Path) -> None:
    (place / "a/0.png").unlink()
    (place / "a/0.png").symlink_to(place / "nowhere")


@pytest.mark.parametrize("change", [drop, change_content, cut, replace_by_a_folder, break_the_link])
def test_what_is_missing_or_changed_is_named(change: Callable[[Path], None], place: Path):
    change(place)
    with pytest.raises(DataError, match="1 of 6 images of the run are not below") as failure:
        look(place)
    is_changed = change in (change_content, cut)
    expected = "1 with other content: a/0.png" if is_changed else "1 missing: a/0.png"
    assert failure.value.received == expected
    assert "data.path=" in failure.value.fix


def test_all_culprits_are_counted_at_once(place: Path):
    shutil.rmtree(place / "a")
    write(place / "b/1.png", "other")
    with pytest.raises(DataError, match="4 of 6") as failure:
        look(place)
    assert "3 missing: a/0.png, a/2.png, a/4.png" in failure.value.received
    assert "1 with other content: b/1.png" in failure.value.received


@pytest.mark.parametrize("source", ["folder", "csv"])
def test_place_that_is_gone_is_named(source: str, tmp_path: Path):
    with pytest.raises(DataError, match="no longer at data") as failure:
        look(tmp_path / "gone" / "photos", source)
    assert "data.path=" in failure.value.fix
