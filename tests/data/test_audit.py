"""The audit reads every file once, keeps the pixels, and loses nothing in silence."""

import contextlib
import dataclasses
import hashlib
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from labelled import read_records
from PIL import Image

from keras_transfer.data.audit import Audited, audit
from keras_transfer.data.reading import DecodedImage, read_pixels
from keras_transfer.errors import DataError, RunError
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import DataSpec
from keras_transfer.storage.cache import Cache

RNG = np.random.default_rng(0)


def image(file: Path, **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(file, **options)
    return file


def two_classes(root: Path, count: int = 3) -> Path:
    for label in ("a", "b"):
        for number in range(count):
            image(root / label / f"{number}.png")
    return root


def run(root: Path, folder: Path, **fields) -> Audited:
    spec = DataSpec(path=str(root), image_size=8, **fields)
    return audit(read_records(spec), spec, cache=Cache(folder), reporter=SilentReporter())


class Counting(SilentReporter):
    """Remembers what was counted."""

    def __init__(self):
        self.counts: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def progress(self, title: str):
        yield lambda done, total: self.counts.append((done, total))


def test_audit_keeps_every_readable_image_in_order(digits_folder, tmp_path):
    records, pixels, num_decoded = run(digits_folder, tmp_path / "new")
    assert num_decoded == 300
    assert len(records.items) == 300
    assert pixels.shape == (300, 8, 8, 3)
    assert pixels.dtype == np.uint8
    files = [records.file(row) for row in range(300)]
    expected = read_pixels(files, image_size=8, resize="crop", max_megapixels=1)
    for row, result in enumerate(expected):
        assert isinstance(result, DecodedImage)
        np.testing.assert_array_equal(pixels[row], result.pixels)
        assert records.items[row].digest == hashlib.sha256(files[row].read_bytes()).hexdigest()
    assert len({record.example_id for record in records.items}) == 300
    assert records.bad_files == ()


def test_audit_leaves_out_unreadable_files_and_names_them(tmp_path):
    root = two_classes(tmp_path / "set")
    (root / "a" / "1.png").write_bytes(b"")
    (root / "b" / "words.jpg").write_text("not pixels")
    photo = image(root / "b" / "cut.jpg")
    photo.write_bytes(photo.read_bytes()[:-30])
    spec, reporter = DataSpec(path=str(root), image_size=8), Counting()
    cache = Cache(tmp_path / "store")
    records, pixels, _ = audit(read_records(spec), spec, cache=cache, reporter=reporter)
    assert [(file.path, file.reason.split()[0]) for file in records.bad_files] == [
        ("a/1.png", "empty"),
        ("b/cut.jpg", "truncated"),
        ("b/words.jpg", "not"),
    ]
    kept = ["a/0.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png"]
    assert [record.path for record in records.items] == kept
    assert reporter.counts == [(number, 8) for number in range(1, 9)]
    for path, row in zip(kept, pixels, strict=True):
        (expected,) = read_pixels([root / path], image_size=8, resize="crop", max_megapixels=1)
        np.testing.assert_array_equal(row, expected.pixels)


def test_audit_stops_at_unreadable_files_when_told_to(tmp_path):
    root = two_classes(tmp_path / "set")
    for number in range(12):
        (root / "a" / f"bad{number:02d}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"12 files of 18") as raised:
        run(root, tmp_path / "store", on_bad_file="error")
    assert "a/bad00.jpg (empty file)" in raised.value.received
    assert raised.value.received.endswith("and 2 more")


def test_audit_refuses_a_class_without_any_readable_file(tmp_path):
    root = two_classes(tmp_path / "set")
    for file in (root / "b").iterdir():
        file.write_text("words")
    with pytest.raises(DataError, match="class 'b' has no readable image") as raised:
        run(root, tmp_path / "store")
    assert "b/0.png (not an image" in raised.value.received
    assert raised.value.expected
    assert raised.value.fix


def test_audit_names_all_classes_without_any_readable_file(tmp_path):
    root = two_classes(tmp_path / "set")
    for file in root.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="class 'a', class 'b' have no readable image"):
        run(root, tmp_path / "store")


def test_audit_refuses_a_split_without_any_readable_file(tmp_path):
    root = tmp_path / "set"
    two_classes(root / "train")
    two_classes(root / "test", count=1)
    for file in (root / "test").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="split 'test' has no readable image"):
        run(root, tmp_path / "store")


def test_audit_reports_listed_files_that_do_not_exist(tmp_path):
    root = two_classes(tmp_path / "set")
    table = root / "t.csv"
    table.write_text("path,label\na/0.png,a\nb/0.png,b\nb/gone.png,b\n")
    spec = DataSpec(source="csv", path=str(table), image_size=8)
    cache = Cache(tmp_path / "store")
    records, _, _ = audit(read_records(spec), spec, cache=cache, reporter=SilentReporter())
    ((path, reason),) = [(file.path, file.reason) for file in records.bad_files]
    assert (path, reason) == ("b/gone.png", "no such file or directory")


def test_audit_tells_what_is_unusual_about_files(tmp_path):
    root = two_classes(tmp_path / "set")
    exif = Image.Exif()
    exif[0x0112] = 6
    image(root / "a" / "turned.jpg", exif=exif)
    for number in range(2):
        transparent = Image.fromarray(RNG.integers(0, 256, (9, 9, 4), dtype=np.uint8))
        transparent.save(root / "b" / f"glass{number}.webp", lossless=True)
    shades = Image.fromarray(RNG.integers(0, 256, (9, 9), dtype=np.uint8))
    shades.save(root / "b" / "old.bmp")
    records, _, _ = run(root, tmp_path / "store")
    assert records.notes == (
        "2 images have transparency, shown on white (data.background)",
        "1 image was turned upright by the EXIF orientation",
        "1 image was converted to PNG first, which an exported model does not do (BMP)",
    )


def test_audit_tells_of_copies_under_other_labels_and_in_other_splits(tmp_path):
    root = tmp_path / "set"
    two_classes(root / "train")
    two_classes(root / "val")
    shutil.copy(root / "train" / "a" / "0.png", root / "train" / "a" / "again.png")
    shutil.copy(root / "train" / "a" / "0.png", root / "train" / "b" / "wrong.png")
    shutil.copy(root / "train" / "b" / "1.png", root / "val" / "b" / "leak.png")
    records, _, _ = run(root, tmp_path / "store")
    assert records.notes == (
        "3 images are exact copies of others",
        "1 image appears under different labels: train/a/0.png (a) and train/b/wrong.png (b)",
        "1 image appears in different splits: train/b/1.png (train) and val/b/leak.png (val)",
    )


def test_audit_tells_a_full_disk_and_goes_on_where_it_stopped(tmp_path):
    root = two_classes(tmp_path / "set", count=40)
    spec = DataSpec(path=str(root), image_size=64)
    records, cache = read_records(spec), Cache(tmp_path / "store")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(RunError, match="disk is full") as raised:
            audit(records, spec, cache=cache, reporter=SilentReporter())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cache.folder" in raised.value.fix
    audited = audit(records, spec, cache=cache, reporter=SilentReporter())
    assert (len(audited.pixels), audited.num_decoded) == (80, 80)


def test_audit_decodes_a_file_once_whatever_it_is_called(tmp_path):
    root = two_classes(tmp_path / "set")
    _, before, _ = run(root, tmp_path / "store")
    (root / "a" / "0.png").rename(root / "a" / "other.png")
    root.rename(tmp_path / "elsewhere")
    records, pixels, num_decoded = run(tmp_path / "elsewhere", tmp_path / "store")
    assert num_decoded == 0
    assert [record.path for record in records.items][:3] == ["a/1.png", "a/2.png", "a/other.png"]
    np.testing.assert_array_equal(pixels[2], before[0])


def test_audit_decodes_again_what_has_another_byte_or_size(tmp_path):
    root = two_classes(tmp_path / "set")
    run(root, tmp_path / "store")
    image(root / "b" / "2.png")
    assert run(root, tmp_path / "store").num_decoded == 1
    spec = DataSpec(path=str(root), image_size=9)
    cache = Cache(tmp_path / "store")
    assert audit(read_records(spec), spec, cache=cache, reporter=SilentReporter()).num_decoded == 6


def test_audit_stores_copies_once(tmp_path):
    root = two_classes(tmp_path / "set")
    shutil.copy(root / "a" / "0.png", root / "a" / "again.png")
    records, pixels, _ = run(root, tmp_path / "store")
    assert len(records.items) == len(pixels) == 7
    np.testing.assert_array_equal(pixels[0], pixels[3])


def test_audit_keeps_the_notes_of_the_source(tmp_path):
    root = two_classes(tmp_path / "set")
    spec = DataSpec(path=str(root), image_size=8)
    records = dataclasses.replace(read_records(spec), notes=("said before",))
    cache = Cache(tmp_path / "store")
    audited = audit(records, spec, cache=cache, reporter=SilentReporter())
    assert audited.records.notes == ("said before",)


@pytest.mark.parametrize(
    ("level", "width"), [(0, 0), (255, 0), (128, 2), (40, 4)], ids=["black", "white", "grey", "dim"]
)
def test_audit_names_images_of_a_single_colour(level, width, tmp_path):
    root = two_classes(tmp_path / "set")
    for number in range(7):
        noise = RNG.integers(0, width + 1, (12, 10, 3)) + level + number % 2 * (level < 200)
        Image.fromarray(noise.astype(np.uint8)).save(root / "a" / f"flat{number}.png")
    (note,) = run(root, tmp_path / "store")[0].notes[:1]
    named = ", ".join(f"a/flat{number}.png" for number in range(5))
    assert note == f"7 images decode to a single colour or nearly so: {named} and 2 more"


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_audit_suggests_the_bit_depth_of_dark_16_bit_files(bits, tmp_path):
    root = two_classes(tmp_path / "set")
    values = RNG.integers(0, 2**bits, (12, 12), dtype=np.uint16)
    values[0], values[-1] = 0, 2**bits - 1
    Image.fromarray(values).save(root / "b" / "scan.png")
    *_, note = run(root, tmp_path / "store")[0].notes
    assert note == f"1 of these is a 16-bit file with at most {bits} bits in use: " + (
        f"set data.bit_depth={bits}"
    )
    records, pixels, _ = run(root, tmp_path / "store", bit_depth=bits)
    assert records.notes == ()
    assert pixels[-1].max() > 200


def test_audit_names_masks_and_images_of_little_contrast(tmp_path):
    root = two_classes(tmp_path / "set")
    for name, low, high in (("mask", 0, 20), ("inverted", 235, 256), ("fog", 100, 150)):
        shades = RNG.choice([low, high - 1], (12, 12, 1)).repeat(3, axis=2).astype(np.uint8)
        Image.fromarray(shades).save(root / "a" / f"{name}.png")
    (note,) = run(root, tmp_path / "store")[0].notes
    assert note == (
        "3 images use less than a quarter of the range 0-255: a/fog.png, a/inverted.png, a/mask.png"
    )


def test_audit_does_not_wait_for_a_listed_pipe(tmp_path):
    root = two_classes(tmp_path / "set")
    os.mkfifo(root / "a" / "pipe.png")
    table = root / "t.csv"
    table.write_text("path,label\na/0.png,a\nb/0.png,b\na/pipe.png,a\nb,b\n")
    spec = DataSpec(source="csv", path=str(table), image_size=8)
    cache = Cache(tmp_path / "store")
    records, _, _ = audit(read_records(spec), spec, cache=cache, reporter=SilentReporter())
    assert [(bad.path, bad.reason) for bad in records.bad_files] == [
        ("a/pipe.png", "named pipe"),
        ("b", "folder"),
    ]
