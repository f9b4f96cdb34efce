"""A short quickstart run and its predictions, compared with recorded ones.

Only the verbs are used. Structure, names, splits and counts must be equal; accuracies may differ by
1.5 points, losses by 0.02 and probabilities by 0.03, since other processors have other kernels.
Fields of the spec and files that came after the recording may be there beside the recorded ones.
After an intended change `python tests/golden/test_golden.py --write` records golden.json again
(`PYTHONPATH=. python ...` in a checkout that is not installed).
"""

import base64
import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.graph_optimizer

GOLDEN = Path(__file__).with_name("golden.json")
WORDS = (
    "quickstart",
    "data.train_size=300",
    "views.count=2",
    "model.dropout=0.2",
    "phases.0.method=supervised",
    "phases.0.learning_rate=5e-3",
    "phases.0.epochs=4",
    "phases.1.epochs=1",
    "training.label_smoothing=0",
    "training.rollback=false",
    "training.refit=false",
)
ACCURACY, LOSS, PROBABILITY = 0.015, 0.02, 0.03
CERTAIN = 0.8
"""A label must be the recorded one where the recorded probability is at least this."""

NEW_FILES = {"task.json", "checksums.json", "export/1/checksums.json"}
"""Files of a run that came after the recording."""


# --- what is observed ---
def observe(folder: Path) -> dict[str, Any]:
    """Run the verbs in an empty folder; plain values of what they left and returned."""
    from pipelines import predict, train

    run = folder / "run"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert train.main(["quickstart", "--print-spec"]) == 0
    assert train.main([*WORDS, "--output", str(run)]) == 0
    images = _write_images(folder / "images")
    with _serving(run, folder) as port:
        targets = {"run": run, "saved_model": run / "export" / "1"}
        for name, target in targets.items():
            output = folder / f"{name}.csv"
            assert predict.main([str(target), str(folder / "images"), "--output", str(output)]) == 0
        responses = _request_all(port, images)
    metrics = _read_json(run / "metrics.json")
    splits = _read_json(run / "splits.json")
    history = _read_csv(run / "history.csv")
    predictions = _read_csv(run / "predictions.csv")
    return {
        "spec": json.loads(printed.getvalue()),
        "files": sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()),
        "class_names": _read_json(run / "class_names.json"),
        "splits": {
            "hash": splits["hash"],
            "counts": splits["counts"],
            "paths": {
                name: hashlib.sha256("\n".join(row["path"] for row in rows).encode()).hexdigest()
                for name, rows in splits["rows"].items()
            },
        },
        "metrics": {
            "structure": _structure(metrics),
            "phases": [{key: phase[key] for key in PHASE_KEYS} for phase in metrics["phases"]],
            "test": {key: metrics["test"][key] for key in TEST_KEYS},
            "export": {key: metrics["export"][key] for key in ("num_files", "label_agreement")},
        },
        "parity": _read_json(run / "export" / "1" / "proof.json")["max_abs_difference"],
        "history": {
            "columns": list(history[0]),
            "rows": [[row["phase"], int(row["epoch"])] for row in history],
            "loss": [float(row["loss"]) for row in history],
            "val_loss": [float(row["val_loss"]) for row in history],
            "val_accuracy": [float(row["val_accuracy"]) for row in history],
        },
        "weights": _read_weights(run / "model.keras"),
        "predictions": {
            "columns": list(predictions[0]),
            "paths": [row["path"] for row in predictions],
            "predicted": [row["prediction"] for row in predictions],
        },
        "predict": {name: _read_predictions(folder / f"{name}.csv") for name in targets},
        "server": responses,
    }


PHASE_KEYS = ("name", "epochs", "num_trainable", "kept", "val_score", "val_loss",
              "test_score", "test_loss")  # fmt: skip
TEST_KEYS = ("num_examples", "accuracy", "balanced_accuracy", "log_loss")


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def _read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def _structure(value: Any) -> Any:
    """Keys and kinds of values, without the values."""
    if isinstance(value, dict):
        return {key: _structure(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_structure(item) for item in value]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if is_number else type(value).__name__


def _read_weights(file: Path) -> dict[str, list[int]]:
    """The shape of each array in a .keras file, by its place there."""
    import h5py

    shapes: dict[str, list[int]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            shapes[name] = list(item.shape)

    with zipfile.ZipFile(file) as archive:
        data = archive.read("model.weights.h5")
    with h5py.File(io.BytesIO(data), "r") as opened:
        opened.visititems(visit)
    return shapes


def _read_predictions(file: Path) -> dict[str, Any]:
    rows = _read_csv(file)
    columns = list(rows[0])
    classes = [name for name in columns if name.startswith("probability_")]
    return {
        "columns": columns,
        "files": [Path(row["path"]).name for row in rows],
        "labels": [row["prediction"] for row in rows],
        "probabilities": [[round(float(row[name]), 6) for name in classes] for row in rows],
    }


def _write_images(folder: Path) -> list[bytes]:
    """16 of scikit-learn's digits as PNG files."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir()
    scans = load_digits()
    for number, row in enumerate(range(5, 1797, 119)):
        pixels = np.uint8(np.round(scans.images[row] * 255 / 16))
        Image.fromarray(pixels).save(folder / f"{number:02d}_{scans.target[row]}.png")
    return [file.read_bytes() for file in sorted(folder.iterdir())]


@contextlib.contextmanager
def _serving(run: Path, folder: Path) -> Iterator[int]:
    """A server in a process of its own; its port. It loads while the caller goes on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.serve", str(run), "--port", str(port)]
    root = Path(__file__).resolve().parents[2]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--name", "golden"],
            cwd=root if (root / "pipelines").is_dir() else None,
            stdout=log,
            stderr=log,
        )
        try:
            yield port
        finally:
            process.terminate()
            process.wait(30)


def _request(port: int, path: str, content: Any = None) -> tuple[int, Any]:
    data = None
    if content is not None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def _request_all(port: int, images: list[bytes]) -> dict[str, Any]:
    end = time.monotonic() + 90
    while True:
        with contextlib.suppress(OSError):
            if _request(port, "/readyz")[0] == 200:
                break
        assert time.monotonic() < end, "the server did not get ready"
        time.sleep(0.1)
    rows = [{"b64": base64.b64encode(data).decode()} for data in images]
    model = "/v1/models/golden"
    requests: dict[str, tuple[str, Any]] = {
        "rows": (f"{model}:predict", {"instances": rows}),
        "columns": (f"{model}:predict", {"inputs": {"image_bytes": rows[:3]}}),
        "version": (f"{model}/versions/1:predict", {"instances": rows[:1]}),
        "explained": (
            f"{model}:predict",
            {
                "signature_name": "serving_explain",
                "instances": [{"image_bytes": rows[0], "class_index": -1}],
            },
        ),
        "no JSON": (f"{model}:predict", b'{"instances": ['),
        "no rows": (f"{model}:predict", {"instances": []}),
        "no image": (f"{model}:predict", {"instances": [{"b64": "AAAA"}]}),
        "wrong input": (f"{model}:predict", {"instances": [{"image": 1}]}),
        "wrong signature": (f"{model}:predict", {"signature_name": "fly", "instances": rows[:1]}),
        "unknown version": (f"{model}/versions/7:predict", {"instances": rows[:1]}),
        "unknown model": ("/v1/models/other:predict", {"instances": rows[:1]}),
        "metadata": (f"{model}/metadata", None),
        "status": (model, None),
    }
    found = {}
    for name, (path, content) in requests.items():
        status, body = _request(port, path, content)
        found[name] = {"status": status, "structure": _structure(body)}
        if name == "status":
            found[name]["body"] = body
        if name == "rows":
            found[name]["labels"] = [row["label"] for row in body["predictions"]]
            found[name]["probabilities"] = [
                [round(p, 6) for p in row["probabilities"]] for row in body["predictions"]
            ]
        if name == "columns":
            found[name]["labels"] = body["outputs"]["label"]
    return found


# --- comparisons ---
@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return _read_json(GOLDEN)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # Through JSON once, so that both sides have lists and texts alike.
    return json.loads(json.dumps(observe(tmp_path_factory.mktemp("golden"))))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["class_names", "splits", "weights"])
def test_what_no_processor_changes_is_as_recorded(part, observed, golden):
    assert observed[part] == golden[part]


@pytest.mark.slow
def test_files_of_a_run_are_as_recorded(observed, golden):
    files = {file for file in observed["files"] if not file.startswith("images/")}
    assert files - NEW_FILES == set(golden["files"])


@pytest.mark.slow
def test_fields_of_the_spec_have_the_recorded_values(observed, golden):
    assert _recorded_fields(observed["spec"], golden["spec"]) == golden["spec"]


@pytest.mark.slow
def test_metrics_are_as_recorded(observed, golden):
    ours, recorded = observed["metrics"], golden["metrics"]
    assert ours["structure"] == recorded["structure"]
    assert ours["export"] == recorded["export"]
    assert observed["parity"] <= 1e-5
    pairs = [
        *zip(ours["phases"], recorded["phases"], strict=True),
        (ours["test"], recorded["test"]),
    ]
    for one, other in pairs:
        for key, value in other.items():
            if key.endswith(("accuracy", "score")):
                assert one[key] == pytest.approx(value, abs=ACCURACY), key
            elif key.endswith("loss"):
                assert one[key] == pytest.approx(value, abs=LOSS), key
            else:
                assert one[key] == value, key


@pytest.mark.slow
def test_history_is_as_recorded(observed, golden):
    ours, recorded = observed["history"], golden["history"]
    assert ours["columns"] == recorded["columns"]
    assert ours["rows"] == recorded["rows"]
    for key in ("loss", "val_loss"):
        assert ours[key] == pytest.approx(recorded[key], abs=LOSS), key
    assert ours["val_accuracy"] == pytest.approx(recorded["val_accuracy"], abs=ACCURACY)


@pytest.mark.slow
def test_predictions_of_the_test_split_are_as_recorded(observed, golden):
    ours, recorded = observed["predictions"], golden["predictions"]
    assert ours["columns"] == recorded["columns"]
    assert ours["paths"] == recorded["paths"]
    agreeing = [a == b for a, b in zip(ours["predicted"], recorded["predicted"], strict=True)]
    assert np.mean(agreeing) >= 1 - ACCURACY


@pytest.mark.slow
@pytest.mark.parametrize("target", ["run", "saved_model"])
def test_predict_gives_what_was_recorded(target, observed, golden):
    ours, recorded = observed["predict"][target], golden["predict"][target]
    assert ours["columns"] == recorded["columns"]
    assert ours["files"] == recorded["files"]
    _check_predictions(ours, recorded)


@pytest.mark.slow
def test_the_server_responds_as_recorded(observed, golden):
    ours, recorded = observed["server"], golden["server"]
    assert ours.keys() == recorded.keys()
    for name, response in recorded.items():
        assert ours[name]["status"] == response["status"], name
        assert ours[name]["structure"] == response["structure"], name
    assert ours["status"]["body"] == recorded["status"]["body"]
    _check_predictions(ours["rows"], recorded["rows"])


@pytest.mark.slow
def test_run_saved_model_and_server_agree(observed):
    first = observed["predict"]["run"]
    for other in (observed["predict"]["saved_model"], observed["server"]["rows"]):
        assert other["labels"] == first["labels"]
        np.testing.assert_allclose(
            other["probabilities"], first["probabilities"], rtol=0, atol=2e-5
        )
    assert observed["server"]["columns"]["labels"] == first["labels"][:3]


def _recorded_fields(value: Any, recorded: Any) -> Any:
    """Without the fields that came after the recording."""
    if isinstance(recorded, dict):
        return {key: _recorded_fields(value[key], recorded[key]) for key in recorded}
    if isinstance(recorded, list):
        return [_recorded_fields(*pair) for pair in zip(value, recorded, strict=True)]
    return value


def _check_predictions(ours: dict[str, Any], recorded: dict[str, Any]) -> None:
    for one, other, row in zip(
        ours["labels"], recorded["labels"], recorded["probabilities"], strict=True
    ):
        assert one == other or max(row) < CERTAIN
    np.testing.assert_allclose(
        ours["probabilities"], recorded["probabilities"], rtol=0, atol=PROBABILITY
    )


def _write() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    folder = Path(tempfile.mkdtemp(prefix="golden-"))
    os.environ["KERAS_TRANSFER_HOME"] = str(folder / "home")
    try:
        content = observe(folder)
    finally:
        shutil.rmtree(folder)
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], "usage: test_golden.py --write"
    _write()
