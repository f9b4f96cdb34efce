"""Folders, CSV files and TFDS data sets become records, or say what is wrong with them."""

import importlib
import os
from pathlib import Path

import pytest
from labelled import read_records
from PIL import Image

from keras_transfer.config import images_at, make_spec
from keras_transfer.data.records import Records
from keras_transfer.errors import DataError, KerasTransferError
from keras_transfer.specs import SOURCES, DataSpec, SourceRow


def image(file: Path, level: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(file)
    return file


def class_folders(root: Path, *names: str, count: int = 2) -> Path:
    for name in names:
        for number in range(count):
            image(root / name / f"{number}.png")
    return root


def table(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def error_of(**fields) -> KerasTransferError:
    """The error that reading gives, which must have all of its four parts."""
    with pytest.raises(KerasTransferError) as raised:
        read_records(DataSpec(**fields))
    error = raised.value
    assert error.what
    assert error.expected
    assert error.received
    assert error.fix
    return error


def rows(records: Records) -> list[tuple]:
    return [(item.path, item.label, item.split, item.group) for item in records.items]


def test_read_records_lists_class_folders_in_order(tmp_path):
    image(tmp_path / "cat" / "b.PNG")
    image(tmp_path / "cat" / "a.jpeg")
    image(tmp_path / "ant" / "deep" / "er" / "c.png")
    records = read_records(DataSpec(path=str(tmp_path)))
    assert rows(records) == [
        ("ant/deep/er/c.png", "ant", None, None),
        ("cat/a.jpeg", "cat", None, None),
        ("cat/b.PNG", "cat", None, None),
    ]
    assert records.class_names == ("ant", "cat")
    assert records.targets.values.tolist() == [0, 1, 1]
    assert records.file(0).is_file()
    assert records.file(0).is_absolute()
    assert records.notes == ()


def test_read_records_takes_relative_paths_and_the_home_folder(tmp_path, monkeypatch):
    class_folders(tmp_path / "photos", "a", "b")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / "photos" / "a" / "0.png"
    for path in ("photos", "./photos/", "~/photos"):
        assert read_records(DataSpec(path=path)).file(0) == expected


def test_read_records_counts_what_it_ignores_in_a_folder(tmp_path):
    class_folders(tmp_path, "a", "b")
    for name in ("readme.txt", "a/notes.txt", "a/list.csv", "b/notes.txt", "b/raw"):
        (tmp_path / name).write_text("words")
    for hidden in (".cover.png", ".cats/0.png", "a/._0.png", ".git/0.png", "a/.thumbs/0.png"):
        image(tmp_path / hidden)
    records = read_records(DataSpec(path=str(tmp_path)))
    assert len(records.items) == 4
    assert records.notes == (
        "5 files that are no images ignored (.txt 3, .csv 1, without suffix 1), such as "
        "readme.txt, a/list.csv, a/notes.txt",
        "2 hidden files and folders ignored (images in them 1), such as .cats, .cover.png",
        "3 files and folders of other programs ignored, such as .git, a/._0.png, a/.thumbs",
    )


def test_read_records_keeps_the_splits_of_a_folder(tmp_path):
    for split in ("train", "val", "test"):
        class_folders(tmp_path / split, "a", "b", count=1)
    records = read_records(DataSpec(path=str(tmp_path)))
    assert [(item.split, item.label) for item in records.items] == [
        (split, label) for split in ("test", "train", "val") for label in ("a", "b")
    ]
    assert records.items[0].path == "test/a/0.png"


def test_read_records_uses_the_configured_names_of_splits(tmp_path):
    class_folders(tmp_path / "training", "a", "b")
    class_folders(tmp_path / "holdout", "a", "b")
    spec = DataSpec(path=str(tmp_path), train_split="training", test_split="holdout")
    assert {item.split for item in read_records(spec).items} == {"train", "test"}
    with pytest.raises(KerasTransferError, match="three different names"):
        read_records(DataSpec(path=str(tmp_path), val_split="training", train_split="training"))


def test_read_records_reads_real_photographs(shared_data):
    records = read_records(DataSpec(path=str(shared_data / "flowers_small")))
    assert len(records.items) == 800
    assert records.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")


def test_a_folder_of_splits_with_another_folder_names_the_setting(tmp_path):
    for name in ("train", "later"):
        class_folders(tmp_path / name, "a", "b")
    assert "data.val_split=later" in error_of(path=str(tmp_path)).fix
    (tmp_path / "train").rename(tmp_path / "first")
    (tmp_path / "later").rename(tmp_path / "val")
    assert "data.train_split=first" in error_of(path=str(tmp_path)).fix
    (tmp_path / "first").rename(tmp_path / "test")
    assert "no training split" in error_of(path=str(tmp_path)).what


def test_missing_paths_and_files_in_place_of_folders_are_named(tmp_path):
    file = image(tmp_path / "a.png")
    assert "nothing there" in error_of(path=str(tmp_path / "no")).received
    assert error_of(path="").what == "no images are given"
    assert "a file" in error_of(path=str(file)).received
    assert "nothing there" in error_of(source="csv", path=str(tmp_path / "no.csv")).received
    assert "a folder" in error_of(source="csv", path=str(tmp_path)).received


def test_a_folder_without_classes_is_refused(tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "b.png")
    error = error_of(path=str(tmp_path))
    assert "no class sub-folders" in error.what
    assert "files: 2" in error.received


def test_one_class_only_is_refused(tmp_path):
    assert "'cat'" in error_of(path=str(class_folders(tmp_path, "cat"))).received


def test_a_class_folder_without_images_is_refused(tmp_path):
    class_folders(tmp_path, "a", "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "movie.mp4").write_text("")
    assert str(tmp_path / "c") in error_of(path=str(tmp_path)).what


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path):
    class_folders(tmp_path, "a", "b")
    (tmp_path / "a" / "locked").mkdir(mode=0)
    if os.access(tmp_path / "a" / "locked", os.R_OK):
        pytest.skip("this user may read everything")
    assert "cannot be listed" in error_of(path=str(tmp_path)).what


def test_class_names_that_differ_by_case_are_refused(tmp_path):
    file = table(tmp_path / "t.csv", "path,label", "a.png,Cat", "b.png,cat", "c.png,dog")
    error = error_of(source="csv", path=str(file))
    assert "'Cat'" in error.received
    assert "'cat'" in error.received


def test_a_class_that_training_lacks_is_refused(tmp_path):
    class_folders(tmp_path / "train", "a", "b")
    class_folders(tmp_path / "val", "a", "b", "c")
    error = error_of(path=str(tmp_path))
    assert "'c'" in error.what
    assert "val/c/0.png" in error.received


def test_read_records_reads_a_table_with_splits_and_groups(tmp_path):
    outside = image(tmp_path / "elsewhere" / "far.png")
    file = table(
        tmp_path / "set" / "t.csv",
        "\ufefflabel, path ,split,group,comment",
        "b,near.png,train,g1,",
        f'a,{outside},test,,"x, y"',
        f"a,{tmp_path}/set/sub/../below.png,,g2",
        "",
        "b,../elsewhere/up.png,val,g1",
    )
    records = read_records(DataSpec(source="csv", path=str(file)))
    assert rows(records) == sorted(
        [
            ("near.png", "b", "train", "g1"),
            (outside.as_posix(), "a", "test", None),
            ("below.png", "a", None, "g2"),
            ((tmp_path / "elsewhere" / "up.png").as_posix(), "b", "val", "g1"),
        ]
    )
    assert records.root == tmp_path / "set"
    files = {item.path: records.file(row) for row, item in enumerate(records.items)}
    assert files[outside.as_posix()] == outside
    assert files["near.png"] == tmp_path / "set" / "near.png"


def test_a_table_may_lack_the_optional_columns_unless_they_are_named(tmp_path):
    file = table(tmp_path / "t.csv", "path,label", "a.png,a", "b.png,b")
    records = read_records(DataSpec(source="csv", path=str(file)))
    assert {(item.split, item.group) for item in records.items} == {(None, None)}
    error = error_of(source="csv", path=str(file), group_column="patient")
    assert "data.group_column" in error.what


def test_a_table_without_a_needed_column_names_the_nearest_one(tmp_path):
    file = table(tmp_path / "t.csv", "filepath,labels", "a.png,a", "b.png,b")
    error = error_of(source="csv", path=str(file), path_column="filepath")
    assert "'label'" in error.what
    assert error.received == "filepath, labels"
    assert "data.label_column=labels" in error.fix


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["path,label,split", "a.png,a,", "b.png,b,later"], "line 3: unknown split 'later'"),
        (["path,label", "a.png,a", "b.png, "], "b.png does not have one label"),
        (["path,label", ",a", "b.png,b"], "line 2: the cell of column 'path' is empty"),
        (["path,label", "a.png"], "a.png does not have one label"),
        (["path,label", "a.png,a", "./a.png,b"], "lines 2 and 3 disagree"),
        (["path,label,split", "a.png,a,train", "a.png,a,val"], "lines 2 and 3 disagree"),
        (["path,label"], "lists no image"),
        ([""], "no column 'path'"),
    ],
)
def test_a_faulty_table_is_refused_with_its_line(lines, complaint, tmp_path):
    file = table(tmp_path / "t.csv", *lines)
    assert complaint in error_of(source="csv", path=str(file)).what


def test_a_table_that_is_no_utf8_text_is_refused(tmp_path):
    file = tmp_path / "t.csv"
    file.write_bytes("path,label\nä.png,a\n".encode("latin-1"))
    assert "UTF-8" in error_of(source="csv", path=str(file)).expected


def test_repeated_lines_count_once(tmp_path):
    file = table(tmp_path / "t.csv", "path,label", "a.png,a", "b.png,b", "./a.png,a")
    records = read_records(DataSpec(source="csv", path=str(file)))
    assert len(records.items) == 2
    assert records.notes == ("1 line of t.csv ignored, repeating another",)


def test_an_unknown_label_outside_training_is_refused(tmp_path):
    lines = ["path,label,split", "a.png,a,train", "b.png,b,train", "c.png,bb,val"]
    error = error_of(source="csv", path=str(table(tmp_path / "t.csv", *lines)))
    assert "'bb'" in error.what


def test_every_row_names_a_function_and_no_suffix_is_read_twice():
    for row in SOURCES.values():
        module, _, name = row.read.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    suffixes = [suffix for row in SOURCES.values() for suffix in row.suffixes]
    assert len(suffixes) == len(set(suffixes))
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in suffixes)


def test_a_path_is_read_by_the_source_of_its_suffix_also_a_new_one(tmp_path, monkeypatch):
    file = table(tmp_path / "t.LIST", "path,label", "a.png,a", "b.png,b")
    row = SourceRow("keras_transfer.data.csv_source:read", (".list",))
    assert make_spec(file).data.source == "folder"
    monkeypatch.setitem(SOURCES, "list", row)
    spec = make_spec(file).data
    assert (spec.source, spec.path) == ("list", str(file))
    assert len(read_records(spec).items) == 2
    assert images_at("t.CSV")["data.source"] == "csv"
    assert images_at(tmp_path)["data.source"] == "folder"


def test_a_data_error_is_what_a_front_door_catches(tmp_path):
    with pytest.raises(DataError, match="To fix it"):
        read_records(DataSpec(path=str(tmp_path / "no")))
