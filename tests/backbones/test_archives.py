"""Archives of trunk weights: round trips, and everything that must be refused."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_transfer.backbones.archives import (
    EMBEDDED,
    embedded_stages,
    find_embedded,
    load_embedded,
    save_embedded,
)
from keras_transfer.backbones.registry import BACKBONES, get_backbone
from keras_transfer.backbones.trunk import build_trunk
from keras_transfer.errors import WeightsError

TINY = "mobilenet_0.25"


def random_trunk(name: str = TINY, *, last_stage: str = "stage2", weights: str = "none"):
    side = get_backbone(name).minimal_size
    inputs = keras.Input((side, side, 3))
    return build_trunk(get_backbone(name), inputs, last_stage=last_stage, weights=weights)


def values(trunk) -> list[np.ndarray]:
    return [value for layer in trunk.layers for value in layer.get_weights()]


@pytest.fixture(scope="module")
def trunk():
    """One for all tests that only read it."""
    return random_trunk()


@pytest.fixture(scope="module")
def other():
    """One for all tests that load something into it."""
    return random_trunk()


@pytest.fixture
def file(trunk, tmp_path) -> Path:
    """An archive of the first."""
    return save_embedded(trunk, tmp_path, {})


def test_archive_when_loaded_holds_the_weights_in_half_precision(trunk, other, tmp_path):
    file = save_embedded(trunk, tmp_path / "new", {"command": "pretrain", "steps": 7})
    record = load_embedded(other, file)
    assert file.name == "mobilenet_0.25_stage2.npz"
    assert (record["command"], record["steps"]) == ("pretrain", 7)
    for saved, loaded in zip(values(trunk), values(other), strict=True):
        np.testing.assert_allclose(loaded, saved, rtol=2**-11, atol=2**-25)
    with np.load(file) as archive:
        assert "conv1/kernel" in archive.files
        assert {archive[key].dtype.name for key in archive.files} == {"float16"}
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "mobilenet_0.25_stage2.json",
        "mobilenet_0.25_stage2.npz",
    ]


def test_values_beyond_half_precision_are_kept(tmp_path):
    trunk = random_trunk(last_stage="stem")
    moving = next(v for v in trunk.layers[1].weights if v.name == "moving_variance")
    moving.assign(np.full(moving.shape, 1e6, "float32"))
    file = save_embedded(trunk, tmp_path, {})
    moving.assign(np.zeros(moving.shape, "float32"))
    load_embedded(trunk, file)
    np.testing.assert_array_equal(trunk.layers[1].get_weights()[3], 1e6)


def test_archive_given_as_a_path_fills_a_shorter_trunk(trunk, file):
    shorter = random_trunk(last_stage="stage1", weights=str(file))
    for saved, loaded in zip(values(trunk), values(shorter), strict=False):
        np.testing.assert_allclose(loaded, saved, rtol=2**-11, atol=2**-25)


def test_archive_that_ends_too_early_is_refused(other, tmp_path):
    file = save_embedded(random_trunk(last_stage="stage1"), tmp_path, {})
    with pytest.raises(
        WeightsError, match=r"does not hold mobilenet_0\.25 through stage2"
    ) as caught:
        load_embedded(other, file)
    assert "missing" in caught.value.received


def test_archive_of_another_width_is_refused(file):
    with pytest.raises(WeightsError) as caught:
        load_embedded(random_trunk("mobilenet_0.5"), file)
    assert "(3, 3, 3, 16)" in caught.value.expected
    assert "(3, 3, 3, 8)" in caught.value.received


def test_changed_archive_is_refused(other, file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="was changed since it was written"):
        load_embedded(other, file)


@pytest.mark.parametrize("text", [None, "not json"])
def test_archive_without_its_record_is_refused(other, file, text):
    beside = file.with_suffix(".json")
    beside.unlink() if text is None else beside.write_text(text)
    with pytest.raises(WeightsError, match=r"the record of mobilenet_0.25_stage2\.npz"):
        load_embedded(other, file)


def test_trunk_with_numbered_layers_is_not_stored(tmp_path):
    with pytest.raises(WeightsError, match="xception cannot be stored") as caught:
        save_embedded(random_trunk("xception", last_stage="stage2"), tmp_path, {})
    assert "such as conv2d" in caught.value.received
    assert list(tmp_path.iterdir()) == []


def test_embedded_weights_reach_the_asked_stage_or_say_which_they_reach(file, tmp_path):
    save_embedded(random_trunk(last_stage="stage1"), tmp_path, {})
    row = get_backbone(TINY)
    assert embedded_stages(row, tmp_path) == ("stage1", "stage2")
    assert find_embedded(row, "stage2", folder=tmp_path) == file
    assert find_embedded(row, "stem", folder=tmp_path).name == "mobilenet_0.25_stage1.npz"
    with pytest.raises(WeightsError, match=r"set model\.last_stage=stage2"):
        find_embedded(row, "stage5", folder=tmp_path)


def test_backbone_without_embedded_weights_names_those_that_have_them(trunk, tmp_path):
    with pytest.raises(WeightsError, match=r"set model\.weights=imagenet"):
        find_embedded(get_backbone("vgg19"), "stage5", folder=tmp_path)
    save_embedded(trunk, tmp_path, {})
    with pytest.raises(WeightsError, match=r"mobilenet_0\.25_stage2"):
        find_embedded(get_backbone("vgg19"), "stage5", folder=tmp_path)


def test_archives_in_the_package_fit_their_trunks_and_stay_small():
    for file in EMBEDDED.glob("*.npz"):
        name, last_stage = file.stem.rsplit("_", 1)
        assert name in BACKBONES
        assert file.stat().st_size <= 4 * 2**20
        trunk = random_trunk(name, last_stage=last_stage, weights="embedded")
        assert trunk.last_stage == last_stage
        record = json.loads(file.with_suffix(".json").read_text())
        assert {"command", "data_seed", "steps", "source_accuracy"} <= set(record)
