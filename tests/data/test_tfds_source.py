"""TFDS data sets are unpacked into files once, and one that is not there is told within seconds."""

import io
import os
import time

import numpy as np
import pytest
from labelled import read_records
from PIL import Image

from keras_transfer.errors import KerasTransferError
from keras_transfer.specs import DataSpec


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


def test_digits_are_prepared_and_unpacked_once_without_a_network(tmp_path, monkeypatch, capfd):
    from sklearn.datasets import load_digits

    monkeypatch.setenv("KERAS_TRANSFER_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    records = read_records(DataSpec(source="tfds", name="digits"))
    assert "Downloading" not in "".join(capfd.readouterr())
    assert len(records.items) == 1797
    assert records.class_names == tuple("0123456789")
    assert {item.split for item in records.items} == {"train"}
    assert records.root == tmp_path / "unpacked" / "digits" / "1.0.0"

    scans = load_digits()
    known = {
        np.uint8(np.round(ink * 255 / 16)).tobytes(): str(digit)
        for ink, digit in zip(scans.images, scans.target, strict=True)
    }
    for row in range(0, 1797, 50):
        pixels = np.asarray(Image.open(records.file(row)))
        assert known[pixels.tobytes()] == records.items[row].label

    before = os.stat(records.file(0)).st_mtime_ns
    assert read_records(DataSpec(source="tfds", name="digits")).items == records.items
    assert os.stat(records.file(0)).st_mtime_ns == before


def test_a_tfds_data_set_on_disk_is_unpacked_with_its_splits(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    class SmallShades(tfds.core.GeneratorBasedBuilder):
        """Grey squares as JPEG; the second class has a name that no folder could have."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "shade": tfds.features.Image(shape=(None, None, 3)),
                "name": tfds.features.ClassLabel(names=["dark", "light/er"]),
                "number": tfds.features.Scalar(np.int64),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(6), "validation": self._generate_examples(4)}

        def _generate_examples(self, count):
            for number in range(count):
                buffer = io.BytesIO()
                Image.new("RGB", (8, 8), (number * 40,) * 3).save(buffer, "JPEG")
                buffer.seek(0)
                yield number, {"shade": buffer, "name": number % 2, "number": number}

    monkeypatch.setenv("KERAS_TRANSFER_HOME", str(tmp_path / "home"))
    tfds.disable_progress_bar()
    tfds.builder("small_shades", data_dir=tmp_path / "data").download_and_prepare()
    spec = DataSpec(source="tfds", name="small_shades", path=str(tmp_path / "data"))
    records = read_records(spec)
    assert records.class_names == ("dark", "light/er")
    assert len(records.items) == 6
    assert all(item.path.endswith(".jpg") for item in records.items)
    assert records.notes == ("splits validation of small_shades are not used",)

    spec = DataSpec(
        source="tfds", name="small_shades", path=str(tmp_path / "data"), val_split="validation"
    )
    splits = [item.split for item in read_records(spec).items]
    assert (splits.count("train"), splits.count("val")) == (6, 4)
    error = error_of(source="tfds", name="small_shades", path=spec.path, train_split="training")
    assert "train, validation" in error.expected


def test_an_unknown_tfds_name_is_refused_with_near_names():
    error = error_of(source="tfds", name="tf_flower")
    assert "tf_flowers" in error.fix
    assert len(str(error)) < 600
    assert "digits" in error_of(source="tfds", name="").fix


def test_an_absent_tfds_data_set_is_refused_within_seconds_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    start = time.perf_counter()
    error = error_of(source="tfds", name="tf_flowers", path=str(tmp_path))
    assert time.perf_counter() - start < 15
    assert str(tmp_path / "tf_flowers") in error.expected
    assert "tfds build tf_flowers" in error.fix
