"""Which images are suggested for labelling: uncertain ones, spread, and none that was used."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import keras_transfer as kt
from keras_transfer.errors import DataError, SpecError
from keras_transfer.experiments.suggestion import UNCERTAINTIES, choose, uncertainties_of
from keras_transfer.reporting.reporter import SilentReporter
from pipelines.benchmarks.label_efficiency import curves
from pipelines.suggest import main


def test_uncertainty_is_one_minus_the_margin_and_highest_between_two_labels():
    outputs = np.array([[0.5, 0.5, 0.0], [0.7, 0.2, 0.1], [0.0, 1.0, 0.0]], np.float32)
    np.testing.assert_allclose(UNCERTAINTIES["softmax"](outputs), [1, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(UNCERTAINTIES["sigmoid"](outputs), [1, 0.6, 0], atol=1e-6)
    np.testing.assert_array_equal(UNCERTAINTIES["linear"](outputs), [1, 1, 1])
    np.testing.assert_array_equal(uncertainties_of(outputs, "linear"), [1, 1, 1])
    several = np.column_stack([[70, -3, 5], outputs, outputs]).astype(np.float32)
    width = outputs.shape[1]
    activation = (("linear", 1), ("softmax", width), ("sigmoid", width))
    np.testing.assert_allclose(uncertainties_of(several, activation), [1, 0.6, 0], atol=1e-6)


def test_one_image_of_each_cluster_is_chosen_and_a_cluster_without_doubt_is_not():
    generator = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    features = np.repeat(centres, 25, axis=0) + generator.normal(0, 0.1, (100, 2))
    uncertainties = np.where(np.arange(100) < 75, 0.8, 0.0)
    chosen = choose(features, uncertainties, 3)
    assert sorted(chosen // 25) == [0, 1, 2]


def test_the_most_uncertain_come_first_and_all_are_returned_where_there_are_fewer():
    uncertainties = np.array([0.1, 0.9, 0.5])
    assert choose(np.eye(3), uncertainties, 3).tolist() == [1, 2, 0]
    assert choose(np.eye(3), uncertainties, 9).tolist() == [1, 2, 0]
    assert len(set(choose(np.zeros((8, 2)), np.zeros(8), 5))) == 5, "equal features, no doubt"


def test_suggested_labels_gain_more_than_random_ones_on_scanned_digits():
    """The command of docs/benchmarks.md on raw pixels: one round of 40 after 20 labels."""
    scans, classes = load_digits(return_X_y=True)
    random, suggested = np.mean(
        [curves(scans, classes, (2, 40, 1), seed) for seed in range(3)], axis=0
    )
    assert random[0] == suggested[0]
    assert suggested[1] - random[1] > 0.02, (random, suggested)


def read(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def run(digits_folder, tmp_path_factory):
    """A run with few labels, whose other images are those to suggest from."""
    return kt.fine_tune(
        digits_folder,
        backbone="small",
        weights="none",
        image_size=16,
        train_size=60,
        phases=[{"name": "frozen", "method": "exact"}],
        output=tmp_path_factory.mktemp("runs") / "few",
        reporter=SilentReporter(),
    )


@pytest.fixture(scope="module")
def folder(run, digits_folder, tmp_path_factory):
    """All images of the run's folder without their classes, a copy, and a broken file."""
    target = tmp_path_factory.mktemp("pool")
    for file in sorted(digits_folder.glob("*/*.png")):
        shutil.copy(file, target / file.name)
    unused = json.loads((run.path / "splits.json").read_text())["rows"]["unused"]
    shutil.copy(digits_folder / unused[0]["path"], target / "copy.png")
    (target / "broken.png").write_bytes(b"not an image")
    return target


def test_no_used_image_is_suggested_and_predictions_are_those_of_predict(run, folder):
    found = run.suggest(folder, count=20, reporter=SilentReporter())
    assert len({one.prediction.path for one in found}) == 20
    uncertainties = [one.uncertainty for one in found]
    assert uncertainties == sorted(uncertainties, reverse=True)
    predicted = run.predict([one.prediction.path for one in found])
    for one, other in zip(found, predicted, strict=True):
        np.testing.assert_allclose(one.prediction.outputs, other.outputs, atol=1e-5)
    rows = json.loads((run.path / "splits.json").read_text())["rows"]
    used = {Path(row["path"]).name for split in ("train", "val", "test") for row in rows[split]}
    assert not used & {Path(one.prediction.path).name for one in found}


def test_the_verb_writes_a_file_and_says_what_was_left_out(run, folder, tmp_path, capsys):
    output = tmp_path / "to_label.csv"
    assert main([str(run.path), str(folder), "--count", "7", "--output", str(output)]) == 0
    rows = read(output)
    assert len(rows) == 7
    assert list(rows[0]) == ["path", "prediction", "uncertainty"]
    said = " ".join(capsys.readouterr().out.split())
    assert "1 copies of others and 1 that cannot be read" in said
    assert main([str(run.path), str(folder), "--output", str(output)]) == 2, "it is not replaced"


def test_errors_name_the_folder_and_what_was_left_out(run, digits_folder, tmp_path):
    with pytest.raises(DataError, match="the folder has no images"):
        run.suggest(tmp_path / "nowhere", reporter=SilentReporter())
    with pytest.raises(SpecError, match="not positive"):
        run.suggest(tmp_path, count=0, reporter=SilentReporter())
    used = run.path.parent / "only_used"
    used.mkdir()
    for row in read(run.path / "predictions.csv"):
        shutil.copy(digits_folder / row["path"], used)
    with pytest.raises(DataError, match="no image to suggest"):
        run.suggest(used, reporter=SilentReporter())
