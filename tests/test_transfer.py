"""The main job end to end, on real scans and a small trunk.

The golden test does the same with ResNet50.
"""

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import pytest
from forked_process import ForkedProcess

from keras_transfer.config import override, spec_to_dict
from keras_transfer.data.splits import NAMES
from keras_transfer.errors import RunError, SpecError
from keras_transfer.evaluation.results import Evaluation
from keras_transfer.experiments.evaluation import evaluate_run, export_run
from keras_transfer.experiments.run import evaluate_test, run_transfer
from keras_transfer.experiments.session import open_session
from keras_transfer.experiments.summary import Result, describe_cache
from keras_transfer.inference.prediction import load_run, predict_files
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, DataSpec, ModelSpec, PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.storage.run_start import start_run
from keras_transfer.training.fitting import Outcome, fit_phases
from pipelines import evaluate as evaluate_verb
from pipelines import predict as predict_verb
from pipelines import train as train_verb
from pipelines.arguments import USER_ERROR

pytestmark = pytest.mark.graph_optimizer

FROZEN = PhaseSpec(name="frozen", epochs=3, learning_rate=1e-2)
TUNED = PhaseSpec(
    name="fine-tune", epochs=3, unfreeze="stage3", learning_rate=3e-3, layer_decay=0.5
)


def make_spec(folder: Path) -> RunSpec:
    return RunSpec(
        name="small",
        data=DataSpec(path=str(folder), image_size=32, resize="squash"),
        model=ModelSpec(backbone="small", last_stage="stage3", weights="none"),
        phases=(FROZEN, TUNED),
        training=TrainingSpec(rollback=False, refit=False, label_smoothing=0.0),
        # What 'auto' measures may differ from run to run, and with it the last bits.
        cache=CacheSpec(precision="float32"),
    )


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k != "seconds"}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def read_json(path: Path):
    return json.loads(path.read_text())


class Counting(SilentReporter):
    """Remembers what was counted."""

    def __init__(self):
        self.counted: set[str] = set()

    def progress(self, title: str):
        self.counted.add(title)
        return super().progress(title)


@pytest.fixture(scope="module")
def result(digits_folder, tmp_path_factory) -> Result:
    spec = make_spec(digits_folder)
    run = start_run(spec, output=tmp_path_factory.mktemp("runs") / "first")
    return run_transfer(spec, run, reporter=SilentReporter())


def test_run_folder_holds_everything_and_nothing_half_done(result):
    names = {path.name for path in result.run.path.iterdir()}
    assert names >= {
        "spec.json",
        "splits.json",
        "class_names.json",
        "history.csv",
        "metrics.json",
        "predictions.csv",
        "model.keras",
        "environment.json",
        "cache.json",
        "checksums.json",
        "images",
        "figures",
        "export",
    }
    assert not list(result.run.path.rglob("*partial*"))
    assert not result.run.checkpoint_folder.exists()
    assert len(list(result.run.figures_folder.glob("*.png"))) == 4
    labels = (result.run.export_folder / "1" / "labels.txt").read_text().splitlines()
    assert labels == [f"digit_{number}" for number in range(10)]


def test_metrics_name_phases_test_and_export(result):
    metrics = read_json(result.run.metrics_file)
    assert [phase["name"] for phase in metrics["phases"]] == ["frozen", "fine-tune"]
    for phase in metrics["phases"]:
        assert phase.keys() >= {"name", "val_score", "seconds", "kept"}
    low, high = metrics["test"]["interval"]
    assert low <= metrics["test"]["accuracy"] <= high
    assert metrics["export"]["label_agreement"] == 1.0
    proof = read_json(result.run.export_folder / "1" / "proof.json")
    assert proof["max_abs_difference"] <= 1e-5
    assert proof["num_files"] == metrics["export"]["num_files"]


def test_predictions_agree_with_metrics_and_with_the_splits(result):
    with result.run.predictions_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    test_rows = read_json(result.run.path / "splits.json")["rows"]["test"]
    assert [row["path"] for row in rows] == [row["path"] for row in test_rows]
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / len(rows) == pytest.approx(result.test.accuracy)


def test_history_has_a_row_an_epoch(result):
    with result.run.history_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == ["frozen"] * 3 + ["fine-tune"] * 3
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert float(rows[2]["val_accuracy"]) <= 1


def test_splits_are_disjoint_and_complete(result):
    rows = read_json(result.run.path / "splits.json")["rows"]
    paths = [row["path"] for name in NAMES for row in rows[name]]
    assert len(paths) == len(set(paths)) == 300


def test_reloaded_model_predicts_like_the_trained_one(result):
    loaded = load_run(result.run.path)
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.model(pixels), result.classifier.model(pixels))


def train(spec: RunSpec) -> tuple[list[Outcome], dict, Evaluation]:
    """The phases of a run, what its cache.json holds, and its test figures; nothing is written."""
    reporter = SilentReporter()
    with open_session(spec, reporter=reporter) as session:
        classifier, phase_inputs = session.build_classifier(), session.phase_inputs()
        outcomes = fit_phases(classifier, phase_inputs, reporter=reporter)
        data, stats = session.data, phase_inputs.extraction_stats
        outputs = phase_inputs.predict(classifier, data.splits.test)
        test = evaluate_test(session.task, data, outputs, seed=spec.seed)
    return outcomes, describe_cache(data.num_decoded, stats, outcomes, data.splits), test


@pytest.mark.slow
def test_same_seed_gives_the_same_phases_from_an_empty_cache(
    result, digits_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("KERAS_TRANSFER_HOME", str(tmp_path))
    keras.utils.clear_session()
    outcomes, cache, _ = train(make_spec(digits_folder))
    one, other = ([without_times(asdict(o)) for o in pair] for pair in (result.outcomes, outcomes))
    assert one == other
    assert (cache["images_decoded"], cache["views_found"]) == (300, 0)
    # 210 training images in three views, 90 others: the cache has them all, in one pass.
    assert cache["views_computed"] == 210 * 3 + 90


@pytest.mark.slow
def test_another_head_decodes_no_image_and_runs_no_frozen_layer(result, digits_folder):
    changes = {"model.dropout": 0.5, "model.head": "mlp", "phases.0.learning_rate": 1e-3}
    _, cache, _ = train(override(make_spec(digits_folder), changes))
    assert (cache["images_decoded"], cache["views_computed"]) == (0, 0)
    assert cache["views_found"] == 210 * 3 + 90


def test_evaluating_a_run_again_decodes_and_predicts_nothing(result):
    reporter = Counting()
    evaluate_run(result.run.path, None, reporter=reporter)
    assert reporter.counted == {"looking for the run's images", "reading images"}


def test_evaluate_gives_the_runs_own_figures(result):
    evaluation = evaluate_run(result.run.path, None, reporter=SilentReporter())
    assert evaluation.accuracy == result.test.accuracy
    assert evaluation.log_loss == pytest.approx(result.test.log_loss, abs=1e-6)


def test_evaluate_on_other_images_goes_by_name(result, digits_folder, tmp_path):
    for name in ("digit_3", "digit_7"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for file in (digits_folder / name).iterdir():
            (tmp_path / "two" / name / file.name).write_bytes(file.read_bytes())
    evaluation = evaluate_run(
        result.run.path, str(tmp_path / "two"), include_training=True, reporter=SilentReporter()
    )
    loaded = load_run(result.run.path)
    right = 0
    files = sorted((tmp_path / "two").rglob("*.png"))
    for file, predicted in zip(files, predict_files(loaded, files), strict=True):
        right += predicted.label == file.parent.name
    assert evaluation.accuracy == pytest.approx(right / len(files))


def test_evaluate_verb_writes_the_figures_where_told(result, tmp_path, capsys):
    output = tmp_path / "figures.json"
    assert evaluate_verb.main([str(result.run.path), "--output", str(output)]) == 0
    assert read_json(output)["accuracy"] == result.test.accuracy
    assert "digit_7" in capsys.readouterr().out


@pytest.mark.slow
def test_export_again_gets_the_next_version_and_its_proof(result):
    folder, proof = export_run(result.run.path, reporter=SilentReporter())
    assert folder.name == "2"
    assert proof.parity.label_agreement == 1.0
    assert (result.run.export_folder / "1" / "saved_model.pb").is_file()


@pytest.mark.slow
def test_phase_that_gains_nothing_is_undone(digits_folder):
    changes = {"training.rollback": True, "phases.1.learning_rate": 0.0, "phases.1.epochs": 1}
    changes |= {"phases.1.warmup_epochs": 0, "phases.1.weight_decay": 0}
    outcomes, _, test = train(override(make_spec(digits_folder), changes))
    assert [outcome.kept for outcome in outcomes] == [True, False]
    assert outcomes[1].gain == 0
    assert test.accuracy == outcomes[0].test_score


TESTS = Path(__file__).parent
TRAIN_SMALL = """
import runpy, sys
sys.path[:0] = [".", ".."]
from small_backbone import SMALL
from keras_transfer.backbones.registry import BACKBONES
BACKBONES[SMALL.name] = SMALL
runpy.run_module("pipelines.train", run_name="__main__", alter_sys=True)
"""
"""The verb in a process that knows the backbone `small`."""


@pytest.mark.slow
def test_killed_run_ends_like_an_undisturbed_one(result, digits_folder, tmp_path):
    spec_file, output = tmp_path / "spec.json", tmp_path / "killed"
    spec_file.write_text(json.dumps(spec_to_dict(make_spec(digits_folder))))
    command = [sys.executable, "-c", TRAIN_SMALL, str(spec_file), "--output", str(output)]
    process = ForkedProcess(command, cwd=TESTS, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (output / "checkpoint" / "phase-1.npz").is_file():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "metrics.json").exists()
    assert train_verb.main([str(spec_file), "--output", str(output), "--resume"]) == 0
    first, second = read_json(result.run.metrics_file), read_json(output / "metrics.json")
    assert without_times(first) == without_times(second)


def test_resume_with_another_spec_names_the_field(result, digits_folder):
    spec = override(make_spec(digits_folder), {"phases.1.epochs": 9})
    with pytest.raises(RunError, match=r"phases\.1\.epochs=9"):
        start_run(spec, output=result.run.path, resume=True)


def test_resume_of_a_finished_run_touches_nothing(result, digits_folder):
    before = result.run.metrics_file.read_bytes()
    with pytest.raises(RunError, match="is finished"):
        start_run(make_spec(digits_folder), output=result.run.path, resume=True)
    assert result.run.metrics_file.read_bytes() == before


def test_refused_run_leaves_no_folder_in_the_way(digits_folder, tmp_path):
    spec = override(make_spec(digits_folder), {"phases.1.unfreeze": "stage9"})
    run = start_run(spec, output=tmp_path / "run")
    with pytest.raises(SpecError, match="stage9"):
        run_transfer(spec, run, reporter=SilentReporter())
    assert not run.path.exists()


def test_predict_and_evaluate_never_overwrite_a_file(result, digits_folder, tmp_path, capsys):
    photo = tmp_path / "keep.png"
    photo.write_bytes(next(digits_folder.rglob("*.png")).read_bytes())
    before = photo.read_bytes()
    run = str(result.run.path)
    assert predict_verb.main([run, str(photo), "--output", str(photo)]) == USER_ERROR
    assert evaluate_verb.main([run, "--output", str(photo)]) == USER_ERROR
    assert "exists already" in capsys.readouterr().err
    assert photo.read_bytes() == before


def test_second_run_never_overwrites_the_first(result, digits_folder):
    with pytest.raises(RunError, match="already has a run"):
        start_run(make_spec(digits_folder), output=result.run.path)
