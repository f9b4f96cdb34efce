"""The folder source: splits, classes, links, and notes on everything that is ignored."""

import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from keras_transfer.data.records import Listing
from keras_transfer.data.sources import read_records
from keras_transfer.errors import DataError
from keras_transfer.specs import DataSpec


def image(file: Path, kind: str = "PNG") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), len(file.name)).save(file, kind)
    return file


def tree(root: Path, *folders: str) -> Path:
    for folder in folders:
        image(root / folder / "0.png")
    return root


def listed(root: Path, **fields) -> Listing:
    return read_records(DataSpec(path=str(root), **fields))


def paths(listing: Listing) -> list[str]:
    return [item.path for item in listing.items]


def refusal(root: Path, **fields) -> DataError:
    with pytest.raises(DataError) as raised:
        listed(root, **fields)
    assert all((raised.value.expected, raised.value.received, raised.value.fix))
    return raised.value


@pytest.mark.parametrize(
    ("train", "other", "role"),
    [
        ("Training", "Testing", "test"),
        ("Train", "Test", "test"),
        ("TRAIN", "VAL", "val"),
        ("training", "validation", "val"),
        ("train", "valid", "val"),
        ("train_set", "dev-set", "val"),
        ("TrainImages", "HoldOut", "test"),
        ("train2017", "val2017", "val"),
    ],
)
def test_usual_names_of_splits_are_recognised_and_told(train, other, role, tmp_path):
    root = tree(tmp_path, *(f"{split}/{label}" for split in (train, other) for label in "ab"))
    listing = listed(root)
    assert {(item.split, item.label) for item in listing.items} == {
        (split, label) for split in ("train", role) for label in "ab"
    }
    (note,) = listing.notes
    assert f"{other} as {role}" in note


def test_a_split_name_of_the_spec_has_no_synonyms(tmp_path):
    root = tree(tmp_path, "train/a", "train/b", "val/a", "val/b", "validation/a", "validation/b")
    assert "'val', 'validation'" in refusal(root).received
    listing = listed(root, test_split="val", val_split="validation")
    assert {item.split for item in listing.items} == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("folders", "complaint"),
    [
        (("2020/a", "2020/b", "2021/a", "2021/b"), "all have the sub-folders a, b"),
        (("first/a", "first/b", "first/c", "second/a", "second/b"), "sub-folders a, b"),
        (("cat/train", "cat/test", "dog/train", "dog/test"), "sub-folders test, train"),
        (("train/x/a", "train/x/b", "train/y/a", "train/y/b"), "all have the sub-folders a, b"),
        (("train", "test"), "without class folders"),
        (("train", "val", "photos"), "without class folders"),
        (("training/a", "training/b", "test/a", "other/b"), "mixes split folders"),
    ],
)
def test_a_tree_whose_folders_are_not_clearly_classes_is_refused(folders, complaint, tmp_path):
    assert complaint in refusal(tree(tmp_path, *folders)).what


@pytest.mark.parametrize("name", ["train", "valid", "Test"])
def test_a_class_may_be_called_like_a_split(name, tmp_path):
    listing = listed(tree(tmp_path, name, "bus", "car"))
    assert {item.label for item in listing.items} == {name, "bus", "car"}
    assert {item.split for item in listing.items} == {None}
    assert listing.notes == [f"{name} is a class here: its images are directly in the folder"]


def test_images_without_a_class_are_counted(tmp_path):
    root = tree(tmp_path, "train/a", "train/b", "test")
    for name in ("loose.png", "train/loose.png"):
        image(root / name)
    (root / "val").mkdir()
    listing = listed(root)
    assert paths(listing) == ["train/a/0.png", "train/b/0.png"]
    assert listing.notes == [
        "3 images outside of class folders ignored, such as loose.png, test/0.png, train/loose.png",
        "1 folder without images ignored, such as val",
    ]


def test_links_are_followed_once(tmp_path):
    root = tree(tmp_path / "set", "a", "b/deep")
    store = tree(tmp_path / "store", "c", "more")
    (root / "c").symlink_to(store / "c")
    (root / "a" / "more").symlink_to(store / "more")
    (root / "a" / "one.png").symlink_to(store / "c" / "0.png")
    for number, target in enumerate(("..", "../..", "../b/deep")):
        (root / "b" / f"link{number}").symlink_to(target)
    listing = listed(root)
    expected = ["a/0.png", "a/one.png", "a/more/0.png", "b/deep/0.png", "c/0.png"]
    assert paths(listing) == expected
    assert listing.notes == [
        "3 links to folders that are read anyway ignored, such as b/link0, b/link1, b/link2"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "__MACOSX/a/0.png",
        "a/.ipynb_checkpoints/0-checkpoint.png",
        "a/@eaDir/0.png/SYNOPHOTO_THUMB_XL.jpg",
        "#recycle/0.png",
        "a/.@__thumb/s8000.png",
        "a/SYNOPHOTO_THUMB_S.jpg",
        "a/._0.png",
        "a/0.png_original",
        "a/0.THM",
        "a/Thumbs.db",
        "a/.0.png.icloud",
        "a/0.png.crdownload",
        "a/0.xmp",
    ],
)
def test_files_of_other_programs_are_no_data(name, tmp_path):
    root = tree(tmp_path, "a", "b")
    image(root / name)
    listing = listed(root)
    assert paths(listing) == ["a/0.png", "b/0.png"]
    (note,) = listing.notes
    assert note.startswith("1 file or folder of another program ignored, such as ")


@pytest.mark.parametrize("name", ["x.jfif", "x", "x.JPE", "x.jpg.1", "x.dat", "photo.of.x"])
def test_images_are_known_by_their_content(name, tmp_path):
    root = tree(tmp_path, "a", "b")
    image(root / "a" / name, "JPEG")
    listing = listed(root)
    assert f"a/{name}" in paths(listing)
    assert listing.notes == []


def test_images_that_cannot_be_read_are_told_by_format(tmp_path):
    root = tree(tmp_path, "a", "b")
    image(root / "a" / "x.tif", "TIFF")
    image(root / "b" / "y", "TIFF")
    image(root / "b" / "z.ico", "ICO")
    (root / "b" / "z.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "b" / "words.txt").write_text("BMW is the first word")
    assert listed(root).notes == [
        "4 images of formats that are not read ignored (TIFF 2, HEIC 1, ICO 1), such as a/x.tif, "
        "b/y, b/z.heic; convert them to PNG or JPEG",
        "1 file that is no image ignored (.txt 1), such as b/words.txt",
    ]


def test_all_class_folders_without_images_are_told_with_what_is_in_them(tmp_path):
    root = tree(tmp_path, "a", "b")
    (root / "c").mkdir()
    image(root / "d" / "x.tif", "TIFF")
    error = refusal(root)
    assert str(root / "c") in error.what
    assert str(root / "d") in error.what
    assert "TIFF 1" in error.received


def test_what_is_not_a_regular_file_is_named_and_not_opened(tmp_path, monkeypatch):
    root = tree(tmp_path, "a", "b")
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "a" / "gone.png").symlink_to("nowhere")
    (root / "b" / "self.png").symlink_to("self.png")
    (root / "b" / "zero.png").symlink_to("/dev/zero")
    monkeypatch.chdir(root / "b")  # The path of a socket is short.
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("s.png")
        (note,) = listed(root).notes
    assert note == (
        "5 entries that cannot be read ignored (broken link 2, named pipe 1, socket 1, device 1), "
        "such as a/gone.png, a/pipe.jpg, b/s.png, b/self.png, b/zero.png"
    )


def test_splits_below_classes_are_refused_where_one_class_lacks_some(tmp_path: Path):
    for folders in (
        ("a/train", "a/test", "b/train"),
        ("a/Training", "b/validation"),
        ("a/train", "a/val", "b", "c"),
    ):
        root = tmp_path / "-".join(folders).replace("/", "_")
        error = refusal(tree(root, *folders))
        assert "put these above the classes" in error.fix
    assert len(paths(listed(tree(tmp_path / "one", "a/train", "b/train")))) == 2
