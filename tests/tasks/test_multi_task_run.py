"""Several targets of real digits: a run, its exports, a stopped phase, a teacher of all heads."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from feature_sources import make_source, make_splits
from PIL import Image

from keras_transfer.config import make_spec
from keras_transfer.data.records import Record
from keras_transfer.errors import DataError, SpecError
from keras_transfer.evaluation.recorded import RecordedEvaluation
from keras_transfer.experiments.run import run_transfer
from keras_transfer.features.phase_inputs import SplitData
from keras_transfer.inference.explanation import explain_files
from keras_transfer.inference.prediction import load_run, predict_files
from keras_transfer.methods.distillation.teacher import load_teacher
from keras_transfer.models.classifier import build_classifier
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.serving.protocol import PER_OUTPUT
from keras_transfer.specs import ModelSpec, PhaseSpec, RunSpec, TrainingSpec, ViewSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run
from keras_transfer.tasks.registry import make_task
from keras_transfer.training.phases import train_phase
from keras_transfer.training.progress import Checkpoint

TARGETS = {"digit": "single_label", "ink": "regression", "tags": "multi_label"}
FIELDS = {"image_size": 32, "backbone": "small", "weights": "none", "views.count": 1}
PHASES = [
    {"name": "frozen", "method": "exact"},
    {"name": "fine-tune", "unfreeze": "stage3", "epochs": 2, "learning_rate": 1e-3},
]


def write_table(folder: Path, file: Path) -> Path:
    """Digits with their ink and shapes; some cells are unknown."""
    lines = []
    for number, image in enumerate(sorted(folder.glob("*/*.png"))):
        digit = image.parent.name[-1]
        ink = f"{np.asarray(Image.open(image)).mean():.3f}"
        tags = [tag for tag, own in {"round": "0689", "bar": "147"}.items() if digit in own]
        cells = [digit, ink, "|".join(tags)]
        unknown = ("", "", "?")
        if number % 4 < 3:
            cells[number % 4] = unknown[number % 4]
        lines.append([str(image), *cells])
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", *TARGETS], *lines])
    return file


@pytest.fixture(scope="module")
def run(digits_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    table = write_table(digits_folder, folder / "digits.csv")
    spec = make_spec(
        table,
        task="multi_task",
        task_options={"targets": TARGETS, "weighting": "uncertainty"},
        phases=PHASES,
        **FIELDS,
    )
    run = start_run(spec, output=folder / "run")
    return run_transfer(spec, run, reporter=SilentReporter()).run.path


def test_a_run_has_the_figures_of_every_target(run):
    content = json.loads((run / "metrics.json").read_text())
    test = content["test"]
    assert list(test["targets"]) == list(TARGETS)
    low, high = test["targets"]["digit"]["intervals"]["accuracy"]
    assert low <= test["targets"]["digit"]["accuracy"] <= high
    assert test["targets"]["digit"]["num_examples"] < test["num_examples"]
    assert test["targets"]["ink"]["per_column"]["ink"]["mean_absolute_error"] > 0
    assert len(content["phases"][-1]["temperature"]) == 3
    recorded = RecordedEvaluation(test)
    assert recorded.headline.value == test["summed_loss"]
    titles = [table.title for table in recorded.tables()]
    assert {title.partition(":")[0] for title in titles} == set(TARGETS)
    with (run / "history.csv").open() as stream:
        row = list(csv.DictReader(stream))[-1]
    assert {"val_summed_loss", "val_digit_accuracy", "val_ink_mean_absolute_error"} <= row.keys()
    assert (run / "figures" / "digit_confusion.png").is_file()


def test_the_table_of_predictions_has_all_targets(run):
    with (run / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[:5] == ["path", "true_digit", "digit", "digit_confidence", "digit_correct"]
    for row in rows:
        shares = {name: float(row[f"digit_probability_{name}"]) for name in "0123456789"}
        assert max(shares, key=shares.get) == row["digit"]
        assert row["digit_correct"] == (
            "" if not row["true_digit"] else str(int(row["digit"] == row["true_digit"]))
        )
        assert np.isfinite(float(row["ink"]))
    assert {"", "?"} <= {row["true_tags"] for row in rows}


def test_the_export_answers_all_targets_as_the_run_predicts_them(run):
    import tensorflow as tf

    content = json.loads((run / "metrics.json").read_text())
    assert content["export"]["label_agreement"] == 1
    loaded, exported = load_run(run), tf.saved_model.load(str(run / "export" / "1"))
    with (run / "predictions.csv").open() as stream:
        files = [Path(row["path"]) for row in list(csv.DictReader(stream))[:6]]
    rows = list(predict_files(loaded, files))
    images = tf.constant([file.read_bytes() for file in files])
    served = exported.signatures["serving_default"](image_bytes=images)
    assert PER_OUTPUT[1] in served
    np.testing.assert_allclose(served["values"], [row.outputs for row in rows], atol=1e-3)
    scale = loaded.task.output_scale
    expected = np.array([row.outputs for row in rows])
    np.testing.assert_allclose(served["values"] / scale, expected / scale, atol=1e-5)
    for place, row in enumerate(rows):
        digit, *tags = row.labels
        assert digit == f"digit={served['digit'][place].numpy().decode()}"
        named = [text.decode() for text in served["tags"][place].numpy() if text]
        assert tags == [f"tags={name}" for name in named]
        np.testing.assert_allclose(served["ink"][place], row.outputs[10], rtol=1e-4)
    assert served["digit_probabilities"].shape == (6, 10)


def test_an_explanation_compares_outputs_of_one_target(run):
    loaded = load_run(run)
    with (run / "predictions.csv").open() as stream:
        files = [Path(next(csv.DictReader(stream))["path"])]
    with pytest.raises(DataError, match="cannot be compared") as raised:
        explain_files(loaded, files)
    assert raised.value.fix == "add --class digit=0"
    (found,) = explain_files(loaded, files, class_name="tags=round")
    assert {name for name, _ in found.top(3)} == {"tags=bar", "tags=round"}
    assert set(found.labels) <= {"tags=bar", "tags=round"}
    (number,) = explain_files(loaded, files, class_name="ink")
    assert number.is_value
    assert (number.labels, number.label, number.confidence) == ((), "ink", number.outputs[10])


def made_data(weighting: str, *, projects: bool = False):
    """Targets of 160 digits on the small classifier, and their data."""
    source = make_source(views=ViewSpec(count=2))
    labels, pixels = source.examples.targets.values, source.examples.pixels
    items = [
        Record(f"{n}.png", ("" if n % 3 == 0 else str(label), f"{image.mean():.4f}"))
        for n, (label, image) in enumerate(zip(labels, pixels, strict=True))
    ]
    targets = {"digit": "single_label", "ink": "regression"}
    options = {"targets": targets, "weighting": weighting, "project_gradients": projects}
    spec = RunSpec(task="multi_task", task_options=options, training=TrainingSpec(batch_size=40))
    task, splits = make_task(spec, items), make_splits()
    targets = task.targets(items)
    task = task.scaled(targets.values[splits.train])
    data = SplitData.of_images(spec, task, replace(source.examples, targets=targets), splits)
    return task, data


def classifier_of(task):
    keras.utils.clear_session()
    model = ModelSpec(backbone="small", last_stage="stage2", weights="none", dropout=0.3)
    classifier = build_classifier(model, image_size=32, task=task, seed=0)
    task.initialise(classifier.model)
    return classifier


class StopAt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("decay", "projects"), [(1.0, False), (0.5, False), (0.5, True)])
def test_a_stopped_phase_with_learned_weights_ends_bit_identical_when_taken_up(
    decay, projects, tmp_path
):
    task, data = made_data("uncertainty", projects=projects)
    phase = PhaseSpec(epochs=3, unfreeze="stage2", learning_rate=1e-3, layer_decay=decay)
    whole, loss = classifier_of(task), task.loss(TrainingSpec())
    expected = train_phase(whole, phase, data, loss=loss)
    learned = np.asarray(loss.layer.logarithms)
    assert (abs(learned) > 0.01).all()
    assert not any("loss_weights" in variable.path for variable in whole.model.variables)

    saver = Checkpoint(RunFolder.create(tmp_path / "run"), "phase-0", print)
    first = classifier_of(task)
    with pytest.raises(KeyboardInterrupt):
        train_phase(
            first,
            phase,
            data,
            loss=task.loss(TrainingSpec()),
            saver=saver,
            callbacks=[StopAt()],
        )
    resumed, again = classifier_of(task), task.loss(TrainingSpec())
    result = train_phase(resumed, phase, data, loss=again, saver=saver)
    for ours, theirs in zip(result.history, expected.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    np.testing.assert_array_equal(np.asarray(again.layer.logarithms), learned)
    for one, other in zip(resumed.model.weights, whole.model.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_a_run_teaches_all_its_heads(run, digits_folder):
    """Its logits, in the user's units, follow from the features below its last dense layer."""
    loaded, teacher = load_run(run), load_teacher(str(run), 32)
    teacher.check(loaded.task, ())
    images = [
        np.asarray(Image.open(file).convert("RGB").resize((32, 32)))
        for file in sorted(digits_folder.glob("digit_3/*.png"))[:4]
    ]
    pixels = np.stack(images).astype(np.float32)
    features = keras.Model(teacher.cut.model.input, teacher.cut.tensor).predict_on_batch(pixels)
    expected = loaded.model.predict_on_batch(pixels)
    np.testing.assert_allclose(teacher.logits(features), expected, rtol=1e-3, atol=1e-3)
    fewer = replace(loaded.task, names=loaded.task.names[:-1])
    with pytest.raises(SpecError, match="the student does not know tags=round"):
        teacher.check(fewer, ())
