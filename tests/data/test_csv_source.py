"""Tables are read however programs write them, or the error says what is wrong with them."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_transfer.config import make_spec, override
from keras_transfer.data.audit import audit
from keras_transfer.data.records import Records
from keras_transfer.data.splits import check_splits
from keras_transfer.errors import DataError, SpecError
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import DataSpec, RunSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.tasks.registry import read_task


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images, 0.png to 9.png, in the folder images/."""
    (tmp_path / "images").mkdir()
    for number in range(10):
        Image.new("L", (8, 8), number).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def table(folder: Path, lines: list[str], encoding: str = "utf-8") -> RunSpec:
    file = folder / "t.csv"
    file.write_text("\n".join(lines) + "\n", encoding=encoding, newline="")
    return override(RunSpec(), {"data.source": "csv", "data.path": str(file)})


def cells(separator: str = ",", path: str = "images/{}.png") -> list[str]:
    rows = [[path.format(number), "ab"[number % 2]] for number in range(10)]
    return [separator.join(row) for row in [["path", "label"], *rows]]


def read(spec: RunSpec, **fields) -> Records:
    return read_task(override(spec, fields))[1]


def check_read(records: Records) -> None:
    assert [item.path for item in records.items] == [f"images/{number}.png" for number in range(10)]
    assert records.targets.values.tolist() == [0, 1] * 5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separator_and_encoding_are_found(separator, encoding, photos):
    records = read(table(photos, cells(separator), encoding))
    check_read(records)
    notes = " ".join(records.notes)
    assert (separator == ";") == ("semicolon" in notes)
    assert ("16" in encoding) == ("UTF-16" in notes)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_first_line_that_states_the_separator_is_no_line_of_the_table(separator, photos):
    lines = [f"sep={separator}", *cells(separator)]
    check_read(read(table(photos, lines)))
    spec = table(photos, [*lines, "no.png"])
    with pytest.raises(DataError, match=r"no\.png does not have one label"):
        read(spec)


def test_columns_of_another_separator_are_named(photos):
    lines = [line.replace("label", "class") for line in cells(";")]
    with pytest.raises(DataError) as raised:
        read(table(photos, lines))
    assert raised.value.received == "path, class"


def test_all_missing_columns_are_named_with_those_that_may_be_meant(photos):
    with pytest.raises(DataError) as raised:
        read(table(photos, ["file,class", "a.png,red"]))
    assert "no column 'path', named by data.path_column and 'label', named by" in raised.value.what
    assert "data.path_column=file data.label_column=class" in raised.value.fix


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["path,label", "a.png,red, dark"], "line 2 has more cells than there are columns"),
        (["path,label,label", "a.png,a,b"], "more than once"),
    ],
)
def test_cells_that_would_be_lost_are_refused(lines, complaint, photos):
    with pytest.raises(DataError, match=complaint):
        read(table(photos, lines))


def test_splits_have_the_usual_names_in_any_case(photos):
    names = ["Training", "TRAIN", "validation", "VAL", "test", "Testing"]
    lines = [f"images/{n}.png,{'ab'[n % 2]},{names[n // 2 % 6]}" for n in range(10)]
    records = read(table(photos, ["path,label,split", *lines]))
    assert {item.split for item in records.items} == {"train", "val", "test"}
    assert "Training as train, TRAIN as train, validation as val" in records.notes[0]
    with pytest.raises(DataError) as raised:
        read(table(photos, ["path,label,split", "a.png,a,later", "b.png,b,never"]))
    assert raised.value.received == "'later', 'never'"


@pytest.mark.parametrize(
    ("path", "kind"), [(r"images\{}.png", "backslashes"), ("images/{}", "without suffix")]
)
def test_paths_that_lead_to_one_file_are_read_and_told(path, kind, photos):
    records = read(table(photos, cells(path=path)))
    check_read(records)
    assert records.notes[0].startswith(f"10 paths with {kind}"[:8])
    assert kind in records.notes[0]


@pytest.mark.parametrize(
    "path",
    [
        "{}.png",
        "{}",
        "{}.jpg",
        r"C:\Users\me\images\{}.png",
        "/home/me/set/images/{}.png",
        "i/{}.PNG",
    ],
)
def test_places_of_missing_files_are_suspected(path, photos, tmp_path_factory):
    spec = table(photos, cells(path=path))
    cache = Cache(tmp_path_factory.mktemp("store"))
    with pytest.raises(DataError, match="10 of 10 paths lead to no file") as raised:
        audit(read(spec), spec.data, cache=cache, reporter=SilentReporter())
    assert "may be images/0.png below" in raised.value.fix


def test_missing_files_without_a_suspicion_are_named(photos, tmp_path_factory):
    spec = table(photos, cells(path="nowhere/x{}.png"))
    cache = Cache(tmp_path_factory.mktemp("store"))
    with pytest.raises(DataError) as raised:
        audit(read(spec), spec.data, cache=cache, reporter=SilentReporter())
    assert "nowhere/x0.png" in raised.value.received


def test_paths_with_unusual_names_are_read_or_named(photos, tmp_path_factory):
    names = [
        "~x.png",
        "=1.png",
        "a\nb.png",
        "[red].png",
        "-r.png",
        "café.png",
        ".h.png",
        "' $x.png",
    ]
    for number, name in enumerate(names):
        (photos / "images" / f"{number}.png").rename(photos / name)
    unreadable = ["x" * 300 + ".png", "gone\x1b.png"]
    lines = [f'"{name}",{"ab"[number % 2]}' for number, name in enumerate(names + unreadable)]
    spec = table(photos, ["path,label", *lines])
    cache = Cache(tmp_path_factory.mktemp("store"))
    records = audit(read(spec), spec.data, cache=cache, reporter=SilentReporter()).records
    assert sorted(item.path for item in records.items) == sorted(names)
    assert sorted(bad.path for bad in records.bad_files) == sorted(unreadable)


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        ("a|b a b a|b a b a b a b", "task=multi_label"),
        ("a;b a b a;b a b a b a b", "task_options.separator=';'"),
        ("1 2 1 2 1 2 1 2 1 2", "task=regression"),
        ("0.5 1,5 -2 3e4 .5 1 1 1 1 1", "task=regression"),
        ("a b a b a b a b a b", ""),
        ("1 b 1 b 1 b 1 b 1 b", ""),
    ],
)
def test_labels_that_look_like_another_task_are_told(labels, hint, photos):
    lines = [f'images/{n}.png,"{label}"' for n, label in enumerate(labels.split())]
    records = read(table(photos, ["path,label", *lines]))
    assert (hint in " ".join(records.notes)) if hint else records.notes == ()


def rare(photos: Path, labels: str, **fields) -> Records:
    lines = [f"images/{n}.png,{label}" for n, label in enumerate(labels)]
    return read(table(photos, ["path,label", *lines]), **fields)


def test_all_rare_classes_are_told_before_images_are_read(photos):
    with pytest.raises(DataError, match=r"2 classes, 'x', 'y', have fewer files") as raised:
        check_splits(rare(photos, "aaaabbbxxy"), DataSpec())
    assert "data.min_per_class=3" in raised.value.fix
    with pytest.raises(DataError) as raised:
        check_splits(rare(photos, "0123456789"), DataSpec())
    assert "task=regression" in raised.value.fix


def test_rare_classes_are_left_out_or_joined(photos):
    fields = {"data.min_per_class": 3}
    records = rare(photos, "aaaabbbxxy", **fields)
    assert records.class_names == ("a", "b")
    assert records.notes == ("2 classes with fewer than 3 images left out (3 images): x, y",)
    records = rare(photos, "aaaabbbxxy", **fields, **{"data.rare_classes": "join"})
    assert records.class_names == ("a", "b", "other")
    assert np.bincount(records.targets.values).tolist() == [4, 3, 3]
    assert "joined into 'other'" in records.notes[0]
    with pytest.raises(SpecError, match=r"data\.min_per_class"):
        override(RunSpec(), {**fields, "task": "regression"})
    with pytest.raises(DataError, match=r"data\.min_per_class=4 leaves fewer than two") as raised:
        rare(photos, "aaaabbbxxy", **{"data.min_per_class": 4})
    assert raised.value.fix == "lower it to 3 or less"


@pytest.mark.parametrize("blank", ["", "  ", ",", " , "])
def test_empty_lines_are_no_images(blank: str, photos: Path):
    lines = cells()
    lines[5:5] = [blank]
    check_read(read(table(photos, [*lines, blank, blank])))


def test_blank_lines_before_the_column_names_are_skipped(photos: Path):
    check_read(read(table(photos, ["", "  ", *cells()])))
    with pytest.raises(DataError, match="line 13: the cell of column 'path' is empty"):
        read(table(photos, ["", *cells(), ",a"]))


def test_quotes_that_join_lines_are_named(photos: Path):
    lines = cells()
    lines[2], lines[6] = f'"{lines[2]}', lines[6].replace(",", '",')
    with pytest.raises(DataError, match="goes over several lines"):
        read(table(photos, lines))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_found_in_either_form_of_unicode(form: str, photos: Path):
    stored, written = unicodedata.normalize(form, "é"), {"NFC": "e\u0301", "NFD": "\xe9"}[form]
    (photos / "images").rename(photos / f"{stored}-images")
    records = read(table(photos, cells(path=f"{written}-images/{{}}.png")))
    assert records.items[0].path == f"{stored}-images/0.png"
    assert any("accents in another form of Unicode" in note for note in records.notes)


def test_a_name_that_ends_with_tsv_is_a_table(photos: Path):
    file = photos / "t.tsv"
    file.write_text("\n".join(cells("\t")))
    check_read(read(make_spec(file)))


@pytest.mark.parametrize("mark", ["\u200b", "\ufeff", "\xad", "\u2060", "\u200d"])
def test_classes_that_differ_by_a_character_without_width_are_refused(mark: str, photos: Path):
    lines = cells()
    lines[3] += mark
    with pytest.raises(DataError, match="differ only by"):
        read(table(photos, lines))
