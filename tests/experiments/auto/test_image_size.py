"""Very small images are enlarged less."""

import pytest
from listener import Listener
from PIL import Image

from keras_transfer.experiments.auto.image_size import SMALL_SIZE, for_small_images
from keras_transfer.specs import DataSpec, RunSpec
from keras_transfer.tasks.registry import read_task


@pytest.mark.parametrize(
    ("given", "expected"), [({}, SMALL_SIZE), ({"image_size": 96}, 96), ({"image_size": 32}, 32)]
)
def test_the_default_size_is_lowered(given, expected, digits_folder):
    spec = RunSpec(data=DataSpec(path=str(digits_folder), **given))
    listening = Listener()
    found = for_small_images(spec, read_task(spec)[1], listening)
    assert found.data.image_size == expected
    assert any("8 px on a side" in words for words in listening.said) == (not given)


def test_photographs_keep_the_default_size_and_broken_files_do_not_count(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (90, 70)).save(tmp_path / name / f"{number}.jpg")
        (tmp_path / name / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    spec = RunSpec(data=DataSpec(path=str(tmp_path)))
    assert for_small_images(spec, read_task(spec)[1], Listener()) == spec
