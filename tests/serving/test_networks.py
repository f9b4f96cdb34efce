"""The formats that a server can compute with in place of the SavedModel."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from http_clients import InProcess, as_base64

from keras_transfer.errors import ExportError, SpecError
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats.registry import FORMATS
from keras_transfer.serving.settings import Settings
from keras_transfer.serving.versions import Version, Versions

NAMES = ("onnx", "litert_float32")
PREDICT = "/v1/models/temples:predict"


@pytest.fixture
def run(served_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(served_run, tmp_path / "run")
    return tmp_path / "run"


def settings_of(run: Path, runtime: str) -> Settings:
    return Settings(folder=run / "export", runtime=runtime, max_batch=4)


def load(run: Path, runtime: str) -> Version:
    settings = settings_of(run, runtime)
    return Version(1, run / "export" / "1", settings, on_batch=lambda size: None)


def rewrite(run: Path, **values: object) -> None:
    """Change the row of onnx in formats.json."""
    file = run / "formats" / "1" / "formats.json"
    content = json.loads(file.read_text())
    next(row for row in content["formats"] if row["name"] == "onnx").update(values)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("runtime", ["onnx", "litert_float32", "auto"])
def test_answers_are_those_of_the_saved_model(runtime, served_run, images, probabilities):
    requests = [
        {"instances": [as_base64(data) for data in images[:3]]},
        {"instances": [as_base64(images[5])]},
        {"signature_name": "serving_resized", "instances": np.zeros((2, 32, 32, 3), int).tolist()},
        {"signature_name": "serving_pixels", "instances": np.ones((1, 50, 40, 3), int).tolist()},
    ]
    answers = []
    for name in ("saved_model", runtime):
        with InProcess(settings_of(served_run, name)) as client:
            answers.append([client.post(PREDICT, json=request) for request in requests])
    for ours, theirs in zip(*answers, strict=True):
        assert ours.status_code == theirs.status_code == 200
        for row, other in zip(
            ours.json()["predictions"], theirs.json()["predictions"], strict=True
        ):
            assert row.keys() == other.keys()
            np.testing.assert_allclose(row["probabilities"], other["probabilities"], atol=1e-5)
            assert row.get("label") == other.get("label")
    rows = answers[0][0].json()["predictions"]
    np.testing.assert_allclose([row["probabilities"] for row in rows], probabilities[:3], atol=1e-6)


def test_heat_maps_are_those_of_the_saved_model(served_run, images):
    content = {"image_bytes": as_base64(images[0]), "class_index": -1}
    request = {"signature_name": "serving_explain", "instances": [content]}
    answers = []
    for name in ("saved_model", "onnx"):
        with InProcess(settings_of(served_run, name)) as client:
            answers.append(client.post(PREDICT, json=request).json()["predictions"])
    assert answers[0] == answers[1]


def test_auto_says_what_it_chose_and_why(run):
    said = []
    versions = Versions(settings_of(run, "auto"), report=said.append, on_batch=lambda size: None)
    versions.refresh()
    versions.stop()
    (words,) = said
    assert words.startswith("Serving version 1 of temples, with ")
    assert "the fastest of " in words
    assert " ms for 1 and " in words
    assert "× as fast as " in words


def test_auto_uses_the_fastest(run, monkeypatch):
    from keras_transfer.serving import networks

    def times(found, image_size):
        return {name: [3.0, 3.0] if name != "onnx" else [1.0, 1.0] for name in found}

    monkeypatch.setattr(networks, "_time_in_turns", times)
    network = load(run, "auto").network
    assert network.name == "onnx"
    assert "3.0 and 3.0 × as fast as saved_model" in network.reason
    assert "verified on 36 test images: 100.0 % of the predictions agree" in network.reason


def test_refused_formats_do_not_serve(run):
    rewrite(run, refusal="outputs differ by 0.5")
    with pytest.raises(ExportError, match="onnx cannot serve") as failure:
        load(run, "onnx")
    assert "outputs differ by 0.5" in failure.value.received
    assert load(run, "auto").network.name != "onnx"


def test_changed_formats_do_not_serve(run, flip):
    for name in NAMES:
        flip(run / "formats" / "1" / FORMATS[name].file, 8000)
    with pytest.raises(ExportError, match="not those that were verified"):
        load(run, "onnx")
    network = load(run, "auto").network
    assert network.name == "saved_model"
    assert "onnx cannot be used: model.onnx" in network.reason


def test_formats_of_another_model_do_not_serve(run):
    folder = run / "formats" / "1"
    contract = Contract.read(folder)
    (folder / "checksums.json").unlink()
    content = json.loads((folder / "contract.json").read_text())
    (folder / "contract.json").write_text(json.dumps(content | {"resize": "stretch"}))
    assert contract.resize != "stretch"
    with pytest.raises(ExportError, match="belongs to another model"):
        load(run, "onnx")


def test_a_damaged_table_is_named(run):
    (run / "formats" / "1" / "formats.json").write_text("[")
    for runtime in ("auto", "onnx"):
        with pytest.raises(ExportError, match=r"formats.json cannot be read"):
            load(run, runtime)


def test_a_missing_format_serves_once_it_is_written(run):
    (run / "formats" / "1").rename(run / "later")
    assert load(run, "auto").network.name == "saved_model"
    said = []
    settings = settings_of(run, "onnx")
    versions = Versions(settings, report=said.append, on_batch=lambda size: None)
    versions.refresh()
    versions.refresh()
    assert versions.number is None
    (words,) = said
    assert "pipelines.export RUN --formats onnx" in words
    (run / "later").rename(run / "formats" / "1")
    versions.refresh()
    assert versions.number == 1
    versions.stop()


def test_an_unknown_runtime_is_refused():
    with pytest.raises(SpecError, match="runtime has an unknown value") as failure:
        Settings(folder=Path("export"), runtime="onx")
    assert "'onnx'" in failure.value.fix
