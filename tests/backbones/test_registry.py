"""The table as a table: names, errors, and what Keras itself says of the same files."""

import inspect
import re
import subprocess
import sys

import keras
import pytest

from keras_transfer.backbones.applications import Application
from keras_transfer.backbones.registry import BACKBONES, get_backbone
from keras_transfer.errors import SpecError

APPLICATIONS = {
    name: row for name, row in BACKBONES.items() if isinstance(row.builder, Application)
}
STAGE_NAMES = ["stem", "stage1", "stage2", "stage3", "stage4", "stage5"]


def test_registry_when_imported_does_not_import_keras():
    code = "import sys, keras_transfer.backbones.registry; print('keras' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


def test_table_has_every_family_of_keras_applications():
    offered = {name for name in vars(keras.applications) if name[0].isupper()}
    assert {row.builder.constructor for row in APPLICATIONS.values()} == offered


def test_names_are_snake_case_with_their_size():
    for name, row in BACKBONES.items():
        assert row.name == name
        assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*(\.\d+)?", name)


@pytest.mark.parametrize("row", BACKBONES.values(), ids=BACKBONES)
def test_stages_are_in_order_and_reach_the_top(row):
    positions = [STAGE_NAMES.index(name) for name in row.stage_names]
    assert positions == sorted(set(positions))
    assert row.stage_names[-1] == "stage5"


@pytest.mark.parametrize("row", APPLICATIONS.values(), ids=APPLICATIONS)
def test_published_weights_are_those_keras_names(row):
    constructor = getattr(keras.applications, row.builder.constructor)
    source = inspect.getsource(sys.modules[constructor.__module__])
    if "V2" in row.builder.constructor and row.builder.constructor.startswith("ResNet"):
        source += inspect.getsource(sys.modules["keras.src.applications.resnet"])
    assert row.weights["imagenet"].digest in source
    assert row.weights["imagenet"].url.rsplit("/", 1)[0].rsplit("/", 1)[1] in source
    if not row.weights["imagenet"].digest:
        assert "file_hash" not in source


def test_unknown_backbone_names_the_nearest():
    with pytest.raises(SpecError, match="did you mean resnet50") as caught:
        get_backbone("resnet-50")
    assert "convnext_tiny" in caught.value.expected
    assert caught.value.received == "'resnet-50'"


def test_known_backbone_is_found():
    assert get_backbone("mobilenet_0.25").builder.arguments == (("alpha", 0.25),)
