"""Which way of serving is kept, and that the one that disagrees never is."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_transfer.config import override
from keras_transfer.data.reading import read_pixels
from keras_transfer.errors import ExportError
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model import proof as room
from keras_transfer.export.saved_model.build import frozen
from keras_transfer.export.saved_model.proof import AS_TRAINED, FOLDED, FROZEN, export_proven
from keras_transfer.models.forward import predict_pixels
from keras_transfer.specs import RunSpec


@pytest.fixture(scope="module")
def files(photos: Path) -> list[Path]:
    return sorted(photos.iterdir())[:8]


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    return override(RunSpec(), {"name": "photos", "data.image_size": 32})


@pytest.fixture
def prove(classifier, class_names, files, spec, tmp_path: Path):
    images = read_pixels(files, image_size=32, resize="crop", max_megapixels=1)
    probabilities = predict_pixels(classifier, np.stack([p.pixels for p in images]))

    def run(precision: str = "float32", *, shift: float = 0.0) -> room.Proof:
        return export_proven(
            classifier,
            tmp_path / "export" / "7",
            spec=override(spec, {"export.precision": precision}),
            class_names=class_names,
            files=files,
            probabilities=probabilities + np.float32([shift, -shift, 0]),
        )

    return run


def test_the_fastest_way_that_agrees_is_kept_with_its_contract(prove, tmp_path: Path):
    proof = prove("bfloat16")
    assert proof.backend == keras.backend.backend()
    faster = FOLDED if proof.backend == "jax" else FROZEN
    assert [(way.name, way.precision) for way in proof.ways] == [
        (AS_TRAINED, "float32"),
        (faster, "float32"),
        (faster, "bfloat16"),
    ]
    assert proof.parity.num_files == 8
    for way in proof.ways:
        assert set(way.milliseconds) == {1, 8}
        assert min(way.milliseconds.values()) > 0
    folder = tmp_path / "export" / "7"
    assert Contract.read(folder).precision == proof.kept.precision
    assert sorted(path.name for path in folder.parent.iterdir()) == ["7"]
    assert json.loads((folder / "proof.json").read_text())["way"] == proof.kept.name
    assert not list(folder.glob("way-*"))


def test_a_way_that_disagrees_is_left_out_however_fast(prove, monkeypatch, tmp_path: Path):
    def wrong(model, *, precision):
        network = frozen(model, precision=precision)
        head = network.head
        object.__setattr__(network, "head", lambda features: 1.01 * head(features))
        return network

    monkeypatch.setattr(room, "frozen", wrong)
    proof = prove()
    assert proof.kept.name == AS_TRAINED
    assert proof.ways[1].parity is None
    assert "disagree" in proof.ways[1].refusal


def test_nothing_appears_if_the_way_it_was_trained_disagrees(prove, tmp_path: Path):
    with pytest.raises(ExportError, match="disagree"):
        prove(shift=1e-3)
    assert list((tmp_path / "export").iterdir()) == []


def test_a_way_must_be_clearly_faster_than_the_trained_one():
    def way(name: str, *milliseconds: float) -> room.Way:
        sizes = dict(zip((1, 8), milliseconds, strict=True))
        return room.Way(name, "float32", sizes, room.Parity(1, 1.0, 0.0))

    trained = way(AS_TRAINED, 10, 40)
    assert room._fastest([trained, way(FROZEN, 9.9, 39.9)]) is trained
    faster = way(FROZEN, 5, 44)
    assert room._fastest([trained, faster]) is faster
