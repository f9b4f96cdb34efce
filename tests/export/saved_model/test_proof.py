"""Which variant of the network is kept, and that one that disagrees never is."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from listener import Listener

from keras_transfer.config import override
from keras_transfer.data.reading import read_pixels
from keras_transfer.errors import ExportError
from keras_transfer.experiments.summary import describe_proof
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model import proof as module
from keras_transfer.export.saved_model.network import frozen
from keras_transfer.export.saved_model.proof import AS_TRAINED, FOLDED, FROZEN, export_proven
from keras_transfer.models.forward import predict_pixels
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.tasks.single_label import SingleLabel


@pytest.fixture(scope="module")
def files(photos: Path) -> list[Path]:
    return sorted(photos.iterdir())[:8]


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    return override(RunSpec(), {"name": "photos", "data.image_size": 32})


@pytest.fixture
def prove(classifier, class_names, files, spec, tmp_path: Path):
    images = read_pixels(files, image_size=32, resize="crop", max_megapixels=1)
    probabilities = predict_pixels(
        classifier, np.stack([p.pixels for p in images]), activation="softmax"
    )

    def run(
        precision: str = "float32", *, shift: float = 0.0, reporter: Reporter | None = None
    ) -> module.Proof:
        return export_proven(
            classifier,
            tmp_path / "export" / "7",
            spec=override(spec, {"export.precision": precision}),
            task=SingleLabel(tuple(class_names)),
            files=files,
            outputs=probabilities + np.float32([shift, -shift, 0]),
            reporter=reporter,
        )

    return run


def test_the_fastest_variant_that_agrees_is_kept_with_its_contract(prove, tmp_path: Path):
    listener = Listener()
    proof = prove("bfloat16", reporter=listener)
    assert listener.said == [
        "Export: 3 forms of the network are written, predict 8 test files in a process without "
        "Keras, and are timed."
    ]
    assert proof.backend == keras.backend.backend()
    faster = FOLDED if proof.backend == "jax" else FROZEN
    assert [(variant.name, variant.precision) for variant in proof.variants] == [
        (AS_TRAINED, "float32"),
        (faster, "float32"),
        (faster, "bfloat16"),
    ]
    assert proof.parity.num_files == 8
    for variant in proof.variants:
        assert set(variant.milliseconds) == {1, 8}
        assert min(variant.milliseconds.values()) > 0
    folder = tmp_path / "export" / "7"
    assert Contract.read(folder).precision == proof.kept.precision
    assert sorted(path.name for path in folder.parent.iterdir()) == ["7"]
    assert json.loads((folder / "proof.json").read_text())["variant"] == proof.kept.name
    assert not list(folder.glob("variant-*"))


def test_a_variant_that_disagrees_is_left_out_however_fast(prove, monkeypatch, tmp_path: Path):
    def wrong(model, *, precision):
        network = frozen(model, precision=precision)
        head = network.head
        object.__setattr__(network, "head", lambda features: 1.01 * head(features))
        return network

    monkeypatch.setattr(module, "frozen", wrong)
    proof = prove()
    assert proof.kept.name == AS_TRAINED
    assert proof.variants[1].parity is None
    assert "disagree" in proof.variants[1].refusal


def test_nothing_appears_if_the_network_as_trained_disagrees(prove, tmp_path: Path):
    with pytest.raises(ExportError, match="disagree"):
        prove(shift=1e-3)
    assert list((tmp_path / "export").iterdir()) == []


def variant(name: str, *milliseconds: float) -> module.Variant:
    sizes = dict(zip((1, 8), milliseconds, strict=True))
    return module.Variant(name, "float32", sizes, module.Parity(1, 1.0, 0.0))


@pytest.mark.parametrize(
    ("milliseconds", "verdict"),
    [
        ((5, 38), "0.50 × for 1, 0.95 × for 8: kept, as the fastest on average."),
        ((11, 20), "kept, as the fastest on average, though slower for one image."),
        ((9.9, 39.9), "left out, because it is not at least 3% faster on average."),
    ],
)
def test_a_verdict_names_its_rule(milliseconds, verdict):
    variants = (variant(AS_TRAINED, 10, 40), variant(FROZEN, *milliseconds))
    text = describe_proof(module.Proof(module._fastest(variants), variants, "tensorflow"))
    assert verdict in text


def test_a_variant_must_be_clearly_faster_than_the_trained_one():
    trained = variant(AS_TRAINED, 10, 40)
    assert module._fastest([trained, variant(FROZEN, 9.9, 39.9)]) is trained
    faster = variant(FROZEN, 5, 44)
    assert module._fastest([trained, faster]) is faster
