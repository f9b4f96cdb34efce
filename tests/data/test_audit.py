"""The audit reads every file once, keeps the pixels, and loses nothing in silence."""

import dataclasses
import hashlib
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_transfer.data.audit import audit
from keras_transfer.data.reading import Picture, read_pixels
from keras_transfer.data.records import Record, Records
from keras_transfer.data.sources import read_records
from keras_transfer.errors import DataError
from keras_transfer.specs import DataSpec

RNG = np.random.default_rng(0)


def picture(file: Path, **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(file, **options)
    return file


def two_classes(root: Path, count: int = 3) -> Path:
    for label in ("a", "b"):
        for number in range(count):
            picture(root / label / f"{number}.png")
    return root


def run(root: Path, out: Path, **fields) -> tuple[Records, np.ndarray]:
    spec = DataSpec(path=str(root), image_size=8, **fields)
    return audit(read_records(spec), spec, pixels_file=out)


def test_audit_keeps_every_readable_picture_in_order(digits_folder, tmp_path):
    records, pixels = run(digits_folder, tmp_path / "new" / "pixels.bin")
    assert len(records.items) == 300
    assert pixels.shape == (300, 8, 8, 3)
    assert pixels.dtype == np.uint8
    files = [records.file(row) for row in range(300)]
    expected = read_pixels(files, image_size=8, resize="crop", max_megapixels=1)
    for row, result in enumerate(expected):
        assert isinstance(result, Picture)
        np.testing.assert_array_equal(pixels[row], result.pixels)
        assert records.items[row].digest == hashlib.sha256(files[row].read_bytes()).hexdigest()
    assert len({record.example_id for record in records.items}) == 300
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["pixels.bin"]
    assert records.bad_files == ()


def test_audit_leaves_out_unreadable_files_and_names_them(tmp_path):
    root = two_classes(tmp_path / "set")
    (root / "a" / "1.png").write_bytes(b"")
    (root / "b" / "words.jpg").write_text("not pixels")
    photo = picture(root / "b" / "cut.jpg")
    photo.write_bytes(photo.read_bytes()[:-30])
    progress: list[tuple[int, int]] = []
    spec = DataSpec(path=str(root), image_size=8)
    records, pixels = audit(
        read_records(spec),
        spec,
        pixels_file=tmp_path / "pixels.bin",
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert [(file.path, file.reason.split()[0]) for file in records.bad_files] == [
        ("a/1.png", "empty"),
        ("b/cut.jpg", "truncated"),
        ("b/words.jpg", "not"),
    ]
    kept = ["a/0.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png"]
    assert [record.path for record in records.items] == kept
    assert progress == [(number, 8) for number in range(1, 9)]
    for path, row in zip(kept, pixels, strict=True):
        (expected,) = read_pixels([root / path], image_size=8, resize="crop", max_megapixels=1)
        np.testing.assert_array_equal(row, expected.pixels)


def test_audit_stops_at_unreadable_files_when_told_to(tmp_path):
    root = two_classes(tmp_path / "set")
    for number in range(12):
        (root / "a" / f"bad{number:02d}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"12 files of 18") as raised:
        run(root, tmp_path / "pixels.bin", on_bad_file="error")
    assert "a/bad00.jpg (empty file)" in raised.value.received
    assert raised.value.received.endswith("and 2 more")
    assert list(tmp_path.iterdir()) == [root]


def test_audit_refuses_a_class_without_any_readable_file(tmp_path):
    root = two_classes(tmp_path / "set")
    for file in (root / "b").iterdir():
        file.write_text("words")
    with pytest.raises(DataError, match="class 'b' has no readable picture") as raised:
        run(root, tmp_path / "pixels.bin")
    assert "b/0.png (not a picture" in raised.value.received
    assert raised.value.expected
    assert raised.value.fix


def test_audit_refuses_a_split_without_any_readable_file(tmp_path):
    root = tmp_path / "set"
    two_classes(root / "train")
    two_classes(root / "test", count=1)
    for file in (root / "test").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="split 'test' has no readable picture"):
        run(root, tmp_path / "pixels.bin")


def test_audit_reports_listed_files_that_do_not_exist(tmp_path):
    root = two_classes(tmp_path / "set")
    table = root / "t.csv"
    table.write_text("path,label\na/0.png,a\nb/0.png,b\nb/gone.png,b\n")
    spec = DataSpec(source="csv", path=str(table), image_size=8)
    records, _ = audit(read_records(spec), spec, pixels_file=tmp_path / "p.bin")
    ((path, reason),) = [(file.path, file.reason) for file in records.bad_files]
    assert (path, reason) == ("b/gone.png", "no such file or directory")


def test_audit_tells_what_is_unusual_about_files(tmp_path):
    root = two_classes(tmp_path / "set")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(root / "a" / "turned.jpg", exif=exif)
    for number in range(2):
        transparent = Image.fromarray(RNG.integers(0, 256, (9, 9, 4), dtype=np.uint8))
        transparent.save(root / "b" / f"glass{number}.webp", lossless=True)
    records, _ = run(root, tmp_path / "pixels.bin")
    assert records.notes == (
        "2 pictures have an alpha channel; transparency is dropped",
        "1 picture carries an EXIF rotation, which is ignored in training and serving alike",
        "2 pictures were converted to PNG first (WEBP)",
    )


def test_audit_tells_of_copies_under_other_labels_and_in_other_splits(tmp_path):
    root = tmp_path / "set"
    two_classes(root / "train")
    two_classes(root / "val")
    shutil.copy(root / "train" / "a" / "0.png", root / "train" / "a" / "again.png")
    shutil.copy(root / "train" / "a" / "0.png", root / "train" / "b" / "wrong.png")
    shutil.copy(root / "train" / "b" / "1.png", root / "val" / "b" / "leak.png")
    records, _ = run(root, tmp_path / "pixels.bin")
    assert records.notes == (
        "3 pictures are exact copies of others",
        "1 picture appears under different labels: train/a/0.png (a) and train/b/wrong.png (b)",
        "1 picture appears in different splits: train/b/1.png (train) and val/b/leak.png (val)",
    )


def test_audit_says_how_much_room_it_needs_when_the_disk_cannot_hold_the_pixels(tmp_path):
    file = picture(tmp_path / "set" / "a" / "0.png")
    spec = DataSpec(path=str(file.parent.parent), image_size=2048)
    num_rows = shutil.disk_usage(tmp_path).free // (2048 * 2048 * 3) + 1
    items = (Record("a/0.png", "a"),) * num_rows
    records = Records(items, ("a",), file.parent.parent)
    with pytest.raises(DataError, match="cannot be written") as raised:
        audit(records, spec, pixels_file=tmp_path / "pixels.bin")
    assert str(num_rows * 2048 * 2048 * 3) in raised.value.expected


def test_audit_leaves_nothing_behind_when_the_disk_fills_up_midway(tmp_path):
    root = two_classes(tmp_path / "set", count=40)
    spec = DataSpec(path=str(root), image_size=64)
    records = read_records(spec)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(DataError, match=r"pixels\.bin") as raised:
            audit(records, spec, pixels_file=tmp_path / "pixels.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in raised.value.received
    assert str(80 * 64 * 64 * 3) in raised.value.expected
    assert list(tmp_path.iterdir()) == [root]


def test_audit_keeps_the_notes_of_the_source(tmp_path):
    root = two_classes(tmp_path / "set")
    spec = DataSpec(path=str(root), image_size=8)
    records = dataclasses.replace(read_records(spec), notes=("said before",))
    assert audit(records, spec, pixels_file=tmp_path / "p.bin")[0].notes == ("said before",)
