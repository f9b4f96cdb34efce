"""Several labels and numbers end to end: from photographs in a CSV file to an ONNX file."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_transfer.config import make_spec
from keras_transfer.experiments.run import run_transfer
from keras_transfer.export.conversion import convert_run
from keras_transfer.export.formats.registry import FORMATS
from keras_transfer.inference.prediction import load_run
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.storage.run_start import start_run
from pipelines import predict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

YELLOW = ("dandelion", "sunflowers")
PHASE = {"name": "frozen", "epochs": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def table(shared_data: Path, tmp_path_factory) -> Path:
    """50 photographs of flowers: names with a colour, and how bright and red they are."""
    file = tmp_path_factory.mktemp("flowers") / "flowers.csv"
    lines = [["path", "labels", "brightness", "redness"]]
    for folder in sorted((shared_data / "flowers_small" / "train").iterdir()):
        for image in sorted(folder.iterdir())[:10]:
            pixels = np.asarray(Image.open(image).convert("RGB").resize((32, 32)), np.float64)
            labels = f"{folder.name}|yellow" if folder.name in YELLOW else folder.name
            lines.append([str(image), labels, pixels.mean(), pixels[..., 0].mean()])
    lines[1][1], lines[2][2] = "?", ""
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(lines)
    return file


def trained(table: Path, folder: Path, **fields) -> Path:
    spec = make_spec(
        table,
        image_size=32,
        backbone="small",
        weights="none",
        phases=[PHASE],
        **fields,
    )
    run = start_run(spec, output=folder / "run")
    return run_transfer(spec, run, reporter=SilentReporter()).run.path


def predicted(target: Path, table: Path, output: Path) -> list[dict[str, str]]:
    with table.open() as stream:
        paths = [row["path"] for row in csv.DictReader(stream)][:5]
    assert predict.main([str(target), *paths, "--output", str(output)]) == 0
    with output.open() as stream:
        return list(csv.DictReader(stream))


def converted(run: Path) -> tuple[Path, object]:
    folder, rows = convert_run(
        run,
        run / "export" / "1",
        [FORMATS["onnx"]],
        compare=False,
        reporter=SilentReporter(),
    )
    (row,) = rows
    return folder / "model.onnx", row.agreement


def test_several_labels(table: Path, tmp_path: Path):
    run = trained(table, tmp_path, task="multi_label", label_column="labels")
    task = load_run(run).task
    assert task.names == ("daisy", "dandelion", "roses", "sunflowers", "tulips", "yellow")
    assert len(task.thresholds) == 6
    content = json.loads((run / "metrics.json").read_text())
    assert content["test"]["mean_average_precision"] > 0
    assert content["export"]["label_agreement"] == 1
    rows = predicted(run, table, tmp_path / "predictions.csv")
    assert list(rows[0])[:4] == ["path", "prediction", "error", "probability_daisy"]
    chosen = {
        name
        for name, t in zip(task.names, task.thresholds, strict=True)
        if float(rows[0][f"probability_{name}"]) >= t
    }
    assert set(filter(None, rows[0]["prediction"].split("|"))) == chosen
    file, agreement = converted(run)
    assert (agreement.refusal, agreement.label_agreement) == ("", 1)
    assert predicted(file, table, tmp_path / "onnx.csv")[0]["prediction"] == rows[0]["prediction"]


def test_several_numbers(table: Path, tmp_path: Path):
    run = trained(table, tmp_path, task="regression", label_column="brightness, redness")
    task = load_run(run).task
    assert 60 < task.means[0] < 160
    content = json.loads((run / "metrics.json").read_text())
    assert content["test"]["standardised_absolute_error"] < 3
    with (run / "history.csv").open() as stream:
        errors = [name for name in csv.DictReader(stream).fieldnames if name.endswith("_error")]
    assert errors == [
        f"{split}standardised_{kind}_error"
        for split in ("", "val_")
        for kind in ("absolute", "root_mean_squared")
    ]
    assert content["export"]["label_agreement"] == 1
    rows = predicted(run, table, tmp_path / "predictions.csv")
    assert list(rows[0]) == ["path", "error", "brightness", "redness"]
    assert -300 < float(rows[0]["brightness"]) < 600
    file, agreement = converted(run)
    assert (agreement.refusal, agreement.label_agreement) == ("", 1)
    again = predicted(file, table, tmp_path / "onnx.csv")
    assert float(again[0]["redness"]) == pytest.approx(float(rows[0]["redness"]), abs=0.01)
