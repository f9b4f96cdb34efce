"""Data in memory become files and a CSV file, the same for the same data."""

import csv
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_transfer.data.python_data import has_numbers, is_in_memory, is_stored, path_of, store
from keras_transfer.errors import DataError, RunError

DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 1, 0, 2, 2, 1])
NAMES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_TRANSFER_HOME", str(tmp_path / "home"))


def read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def shown(file: Path) -> dict[bytes, str]:
    """Labels by pixels."""
    found = {}
    for row in read(file):
        with Image.open(file.parent / row["path"]) as image:
            found[np.asarray(image.convert("RGB")).tobytes()] = row["label"]
    return found


def test_arrays_are_stored_without_loss_once():
    file = store((IMAGES, LABELS), class_names=NAMES)
    expected = {image.tobytes(): NAMES[label] for image, label in zip(IMAGES, LABELS, strict=True)}
    assert shown(file) == expected
    assert store((IMAGES, LABELS), class_names=NAMES) == file
    assert len(list(file.parents[1].iterdir())) == 1
    assert store((IMAGES, LABELS[::-1].copy()), class_names=NAMES) != file


def test_the_order_and_the_batches_of_a_data_set_do_not_matter():
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))
    file = store((IMAGES, LABELS), class_names=NAMES)
    for one in (
        dataset,
        dataset.batch(3),
        dataset.shuffle(7, seed=1),
        dataset.batch(4).prefetch(1),
    ):
        assert store(one, class_names=NAMES) == file


def test_data_sets_of_keras_bring_their_names(tmp_path):
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        folder = tmp_path / "photos" / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    dataset = keras.utils.image_dataset_from_directory(
        str(tmp_path / "photos"), image_size=(6, 5), batch_size=2, verbose=False
    )
    assert dataset.element_spec[0].dtype == tf.float32
    assert shown(store(dataset)) == shown(store((IMAGES, LABELS), class_names=NAMES))


@pytest.mark.parametrize("labels", [list("abcabca"), [0.5, 1, 2, 3, 4, 5, 6], LABELS])
def test_labels_are_texts_or_numbers(labels):
    values = shown(store((IMAGES, np.array(labels)))).values()
    assert sorted(values) == sorted(str(label) for label in np.array(labels).tolist())


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3), (6, 5, 4)])
def test_grey_and_transparent_images_are_stored_as_they_are(shape):
    pixels = DRAW.integers(0, 256, (2, *shape), dtype=np.uint8)
    file = store((pixels, np.array([0, 1])))
    with Image.open(file.parent / read(file)[0]["path"]) as image:
        assert image.mode == {1: "L", 3: "RGB", 4: "RGBA"}[shape[2] if len(shape) > 2 else 1]


def test_floats_are_rounded_and_equal_images_are_kept_apart():
    file = store((np.stack([IMAGES[0] + 0.4, IMAGES[0] - 0.4]).clip(0, 255), np.array([0, 1])))
    rows = read(file)
    assert len({row["path"] for row in rows}) == len(rows) == 2
    assert [row["label"] for row in rows] in (["0", "1"], ["1", "0"])
    assert next(iter(shown(file))) == IMAGES[0].tobytes()


WRONG = {
    "floats 0-1": ((IMAGES / 255, LABELS), "from 0 to 1"),
    "negative": ((IMAGES.astype(int) - 9, LABELS), "give values from 0 to 255"),
    "too large": ((IMAGES.astype(int) * 2, LABELS), "give values from 0 to 255"),
    "floats -1-1": ((IMAGES / 127.5 - 1, LABELS), "127.5"),
    "not finite": ((np.full((2, 4, 4, 3), np.nan), LABELS[:2]), "48 values that are NaN"),
    "channels": ((np.zeros((2, 8, 8, 7), np.uint8), LABELS[:2]), "data.channels"),
    "channels first": ((np.zeros((2, 3, 8, 8), np.uint8), LABELS[:2]), "np.moveaxis"),
    "swapped": ((LABELS, IMAGES), "swap them"),
    "lengths": ((IMAGES, LABELS[:3]), "one label for each image"),
    "one-hot": ((IMAGES, np.eye(3)[LABELS]), "np.argmax(labels, axis=1)"),
    "none": ((IMAGES[:0], LABELS[:0]), "some images of each class"),
    "images alone": (tf.data.Dataset.from_tensor_slices(IMAGES), "map it to (image, label)"),
    "tables": (tf.data.Dataset.from_tensor_slices(({"a": IMAGES}, LABELS)), "map it to"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_data_are_refused_with_what_to_do(name, tmp_path):
    source, fix = WRONG[name]
    assert is_in_memory(source)
    with pytest.raises(DataError) as failure:
        store(source)
    assert fix in failure.value.fix
    assert not list((tmp_path / "home").rglob("*.png"))


def test_a_number_that_is_no_class_is_refused():
    with pytest.raises(DataError, match="not the number of one of the classes"):
        store((IMAGES, LABELS), class_names=("ant", "bee"))


def test_numbers_in_a_table_are_named_as_those_of_arrays():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"path": [f"{n}.png" for n in range(7)], "kind": LABELS})
    file = store(table, class_names=NAMES, label_column="kind")
    assert [row["kind"] for row in read(file)] == [NAMES[label] for label in LABELS]
    mixed = pandas.DataFrame({"path": ["a.png", "b.png"], "label": [np.int64(2), "ant"]})
    assert [row["label"] for row in read(store(mixed, class_names=NAMES))] == ["cat", "ant"]
    with pytest.raises(DataError, match="not the number of one of the classes"):
        store(table, class_names=NAMES[:2], label_column="kind")


def test_labels_that_are_numbers_are_noticed():
    pandas = pytest.importorskip("pandas")
    dataset = tf.data.Dataset.from_tensor_slices
    for labels, are_numbers in ((LABELS, True), (np.array(list("abcabca")), False)):
        table = pandas.DataFrame({"path": "a.png", "kind": labels})
        for data in ((IMAGES, labels), dataset((IMAGES, labels)), table):
            assert has_numbers(data, "kind") is are_numbers
        assert not has_numbers(table, "label")


def test_data_are_stored_here_or_come_from_elsewhere(tmp_path):
    assert is_stored(str(store((IMAGES, LABELS))))
    assert not is_stored(str(tmp_path / "images.csv"))
    assert not is_stored("/images.csv")
    assert not is_stored("")


def test_tables_of_paths_and_of_bytes(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    files = []
    for number, image in enumerate(IMAGES):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(files[-1])
    labels = [NAMES[label] for label in LABELS]
    splits = ["train", "train", "val", "train", "test", "train", "test"]
    monkeypatch.chdir(tmp_path)
    paths = pandas.DataFrame(
        {"path": [file.name for file in files], "label": labels, "split": splits}
    )
    file = store(paths)
    rows = read(file)
    assert [row["path"] for row in rows] == [file.as_posix() for file in files]
    assert [row["split"] for row in rows] == splits
    assert store(paths) == file
    content = pandas.DataFrame({"image": [file.read_bytes() for file in files], "label": labels})
    stored = store(content, path_column="image")
    assert {row["label"] for row in read(stored)} == set(labels)
    assert {(stored.parent / row["image"]).read_bytes() for row in read(stored)} == {
        file.read_bytes() for file in files
    }
    with pytest.raises(DataError, match="no column of images"):
        store(content)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.eye(3)[LABELS], "np.argmax(labels, axis=1)"),
        (LABELS[:, np.newaxis], "labels.ravel()"),
    ],
)
def test_labels_of_two_dimensions_say_what_to_pass(labels, told):
    with pytest.raises(DataError, match="one class for each image") as caught:
        store((IMAGES, labels))
    assert told in caught.value.fix
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, labels))
    for one in (dataset, dataset.batch(2)):
        with pytest.raises(DataError, match=r"tf\.argmax"):
            store(one)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_labels_of_a_table_are_no_class(missing):
    pandas = pytest.importorskip("pandas")
    file = store(pandas.DataFrame({"path": ["a.png", "b.png"], "label": ["ant", missing]}))
    with file.open(newline="") as opened:
        assert [row["label"] for row in csv.DictReader(opened)] == ["ant", ""]


def test_a_path_stays_and_data_are_stored_where_labels_are_wanted(tmp_path):
    assert path_of(tmp_path) == str(tmp_path)
    assert path_of((IMAGES, LABELS)) == str(store((IMAGES, LABELS)))
    with pytest.raises(DataError, match="no images that can be read") as caught:
        path_of([tmp_path, tmp_path])
    assert caught.value.received == "list"
    with pytest.raises(DataError):
        path_of((IMAGES, LABELS), is_labelled=False)


def test_a_full_disk_leaves_nothing(full_disk, tmp_path):
    big = DRAW.integers(0, 256, (2, 90, 90, 3), dtype=np.uint8)
    with full_disk(), pytest.raises(RunError, match="disk is full"):
        store((big, np.array([0, 1])))
    assert list((tmp_path / "home" / "data").iterdir()) == []


def test_paths_and_specs_are_no_data():
    for source in ("folder", Path("folder"), None, 3, (1, 2, 3)):
        assert not is_in_memory(source)
