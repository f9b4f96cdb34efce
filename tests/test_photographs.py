"""Real photographs and real ImageNet weights, where they are on the machine."""

import csv

import numpy as np
import pytest

from keras_transfer.experiments.run import run_transfer
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import DataSpec, ModelSpec, PhaseSpec, RunSpec, TrainingSpec, ViewSpec
from keras_transfer.storage.run_start import start_run
from pipelines import predict

pytestmark = pytest.mark.graph_optimizer

WEIGHTS = "mobilenet_2_5_224_tf_no_top.h5"


@pytest.mark.slow
def test_ants_and_bees_train_export_and_predict(
    shared_data, shared_weights, tmp_path, monkeypatch, capsys
):
    spec = RunSpec(
        name="ants_bees",
        data=DataSpec(
            path=str(shared_data / "ants_bees"),
            image_size=128,
            test_split="val",
            val_split="validation",
            val_fraction=0.2,
        ),
        model=ModelSpec(backbone="mobilenet_0.25", weights=str(shared_weights / WEIGHTS)),
        phases=(
            PhaseSpec(name="frozen", epochs=6, learning_rate=5e-3),
            PhaseSpec(name="fine-tune", epochs=2, unfreeze="stage5", learning_rate=1e-4),
        ),
        views=ViewSpec(count=1),
        training=TrainingSpec(class_weights="balanced", refit=False),
    )
    result = run_transfer(spec, start_run(spec, output=tmp_path / "run"), reporter=SilentReporter())
    assert result.test.num_examples == 153
    # Chance is 0.54; pretrained features of this small trunk are far from it.
    assert result.test.accuracy > 0.75
    assert result.proof.parity.max_abs_difference <= 1e-5

    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    folder = shared_data / "ants_bees" / "val" / "bees"
    output = tmp_path / "predictions.csv"
    words = [str(result.run.path), str(folder), str(broken), "--output", str(output)]
    assert predict.main(words) == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list(folder.iterdir())) + 1
    assert rows[-1]["path"] == str(broken)
    assert rows[-1]["error"]
    assert rows[-1]["prediction"] == ""
    assert np.mean([row["prediction"] == "bees" for row in rows[:-1]]) > 0.6
