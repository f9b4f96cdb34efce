"""What holds for every task of the registry."""

import importlib
import json

import keras
import numpy as np
import pytest

from keras_transfer.data.records import Record
from keras_transfer.errors import SpecError
from keras_transfer.experiments.run_report import history_columns
from keras_transfer.models.activations import activate
from keras_transfer.specs import ModelSpec, RunSpec, TrainingSpec
from keras_transfer.tasks.linear_head import HeadFeatures
from keras_transfer.tasks.registry import TASKS, describe_task, make_task, restore_task
from keras_transfer.tasks.task import Task
from keras_transfer.training import head_solution

CELLS = {
    "single_label": [("b",), ("a",), ("c",)],
    "multi_label": [("a|b",), ("",), ("c|b",), ("?",)],
    "regression": [("1.5",), ("-2",), ("7",), ("",)],
    "multi_task": [("b", "1.5", "x|y"), ("a", "", "x"), ("", "7", ""), ("", "", "?")],
}
"""Targets of images, taken in turn: 24 divides by their number."""

OPTIONS = {
    "multi_task": {
        "targets": {"kind": "single_label", "size": "regression", "tags": "multi_label"}
    },
}
"""Options of tasks that need some."""

METRIC_ERROR = {"multi_label": 0.02}
"""How far the metric of a batch may be from the headline: it may sort into bins."""


def records(name: str, size: int = 24) -> list[Record]:
    cells = CELLS[name]
    return [Record(f"{row}.png", cells[row % len(cells)]) for row in range(size)]


@pytest.fixture(params=list(TASKS))
def task(request) -> Task:
    spec = RunSpec(task=request.param, task_options=OPTIONS.get(request.param, {}))
    return make_task(spec, records(request.param))


def outputs_of(task: Task, size: int, seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(size, len(task.names)))
    return activate(logits.astype(np.float32), task.activation)


def test_targets_have_a_row_an_image_and_strata_that_cover_them(task):
    targets = task.targets(records(task.name))
    assert len(targets) == len(targets.strata) == 24
    assert targets.names == task.names
    assert targets.strata.dtype == bool
    assert targets.strata.shape == (24, len(targets.strata_names))
    assert (
        targets.strata[task.example_weights(targets.values, TrainingSpec()) > 0].any(axis=1).all()
    )
    few = targets.take(np.array([3, 1]))
    np.testing.assert_array_equal(few.values, targets.values[[3, 1]])
    np.testing.assert_array_equal(few.strata, targets.strata[[3, 1]])


def test_encoded_targets_logits_and_weights_fit_loss_and_metrics(task):
    values = task.targets(records(task.name)).values
    encoded, training = task.encode(values), TrainingSpec()
    assert encoded.dtype == np.float32
    assert encoded.shape == (24, len(task.names))
    weights = task.example_weights(values, training)
    assert weights.dtype == np.float32
    assert weights.shape == (24,)
    assert weights.mean() == pytest.approx(1)
    logits = np.random.default_rng(1).normal(size=encoded.shape).astype(np.float32)
    assert np.isfinite(task.loss(training)(encoded, logits, sample_weight=weights))
    metrics = {metric.name: metric for metric in task.metrics()}
    metrics[task.monitor.metric].update_state(encoded, logits, sample_weight=weights)
    outputs = activate(logits, task.activation)
    found = float(metrics[task.monitor.metric].result())
    error = METRIC_ERROR.get(task.name, 0)
    assert found == pytest.approx(task.headline(values, outputs).value, rel=1e-5, abs=error)


def test_every_phase_records_all_metrics_whether_it_solves_or_fits(task, monkeypatch):
    monkeypatch.setattr(head_solution, "_BATCH_SIZE", 7)
    values = task.targets(records(task.name)).values
    values = values[task.example_weights(values, TrainingSpec()) > 0]
    logits = np.random.default_rng(1).normal(size=task.encode(values).shape).astype(np.float32)
    model = keras.Sequential([keras.Input(logits.shape[1:]), keras.layers.Identity()])
    model.compile(loss=task.loss(TrainingSpec()), weighted_metrics=task.metrics())
    fitted = model.evaluate(logits, task.encode(values), return_dict=True, verbose=0)
    solved = head_solution.epoch_metrics(task, values, logits)
    assert solved.keys() == fitted.keys() == {"loss", *(m.name for m in task.metrics())}
    assert solved | {"loss": 0} == pytest.approx(fitted | {"loss": 0})
    columns = history_columns(task)
    assert {*fitted, *(f"val_{name}" for name in fitted)} <= set(columns)
    assert len(columns) == len(set(columns))


def test_the_head_ends_in_an_output_a_name(task):
    tensor = keras.Input((4, 4, 8))
    inputs = tensor
    for layer in task.head(ModelSpec(), seed=0):
        tensor = layer(tensor)
    model = keras.Model(inputs, tensor)
    assert model.output_shape == (None, len(task.names))
    assert model.output.dtype == "float32"


def test_a_solved_head_is_the_layer_of_logits(task):
    values = task.targets(records(task.name)).values
    task = task.scaled(values)
    noise = np.random.default_rng(0).normal(size=(24, 2, 6)) / 10
    noise[..., : len(task.names)] += np.nan_to_num(task.encode(values))[:, None]
    views = noise.astype(np.float16)
    features = HeadFeatures(lambda rows, view: views[rows, view], *views.shape)
    head = task.solve_head(features, values, TrainingSpec(), strengths=(0.5, 1.0))
    assert (head.kernel.dtype, head.bias.dtype) == (np.float64, np.float64)
    assert (head.kernel.shape, head.bias.shape) == ((6, len(task.names)), (len(task.names),))
    assert head.strength in (0.5, 1.0)
    inputs = keras.Input((1, 1, 6))
    tensor = inputs
    for layer in task.head(ModelSpec(), seed=0):
        tensor = layer(tensor)
    model = keras.Model(inputs, tensor)
    task.initialise(model)
    losses = []
    for kernel in (head.kernel, 0 * head.kernel):
        model.get_layer("logits").set_weights([kernel, head.bias])
        logits = keras.ops.convert_to_numpy(model(views[:, :1, None]))
        losses.append(task.example_losses(values, activate(logits, task.activation)).mean())
    assert losses[0] < losses[1] / 2


def test_better_outputs_score_higher_and_lose_less(task):
    values = task.targets(records(task.name)).values
    outputs = outputs_of(task, 24)
    scores, losses = task.example_scores(values, outputs), task.example_losses(values, outputs)
    for found in (scores, losses):
        assert found.dtype == np.float64
        assert found.shape == (24,)
        assert np.isfinite(found).all()
    perfect = task.encode(values)
    assert task.example_scores(values, perfect).mean() >= scores.mean()
    assert task.example_losses(values, perfect).mean() < losses.mean()
    better = task.headline(values, perfect).value, task.headline(values, outputs).value
    assert task.monitor.rank(better[0]) > task.monitor.rank(better[1])


def test_an_evaluation_has_headline_text_tables_and_json(task):
    values, outputs = task.targets(records(task.name)).values, outputs_of(task, 24)
    found = task.fitted(values, outputs).evaluate(values, outputs, seed=3)
    headline = task.headline(values, outputs)
    assert headline.name == task.monitor.metric
    assert (found.headline.name, found.headline.value) == (headline.name, headline.value)
    assert found.headline.interval == headline.interval
    assert headline.interval[0] <= headline.value <= headline.interval[1]
    content = json.loads(json.dumps(found.to_dict()))
    assert content[headline.name] == headline.value
    assert found.describe().endswith(".")
    for table in found.tables():
        assert all(len(row) == len(table.header) for row in table.rows)


def test_rows_have_a_cell_a_column(task):
    values, outputs = task.targets(records(task.name)).values, outputs_of(task, 24)
    assert len(task.row(outputs[0])) == len(task.columns())
    assert len(task.row(outputs[0], values[0])) == len(task.columns(labelled=True))
    assert len(set(task.columns(labelled=True))) == len(task.columns(labelled=True))


def test_a_task_is_restored_from_json(task):
    values, outputs = task.targets(records(task.name)).values, outputs_of(task, 24)
    fitted = task.fitted(values, outputs)
    description = json.loads(json.dumps(describe_task(fitted)))
    restored = restore_task(description, fitted.names)
    assert restored == fitted
    assert describe_task(restored) == description


def test_an_unknown_task_or_option_is_refused(task):
    with pytest.raises(SpecError, match="there is no task called") as raised:
        make_task(RunSpec(task=task.name[:-1]), ())
    assert task.name in raised.value.fix
    with pytest.raises(SpecError):
        make_task(RunSpec(task=task.name, task_options={"no_such_option": 1}), ())


def test_every_row_names_a_class_that_carries_the_row_s_name():
    assert CELLS.keys() == TASKS.keys()
    for name, place in TASKS.items():
        module, _, attribute = place.partition(":")
        assert getattr(importlib.import_module(module), attribute).name == name


def test_what_is_served_follows_from_the_outputs(task):
    import tensorflow as tf

    values, outputs = task.targets(records(task.name)).values, outputs_of(task, 24)
    fitted = task.fitted(values, outputs)
    served = fitted.served(tf.constant(outputs))
    assert next(iter(served)) == fitted.output_name
    np.testing.assert_array_equal(served[fitted.output_name], outputs)
    named = {name: tensor.numpy() for name, tensor in fitted.served_names(served).items()}
    texts = {name: np.char.decode(x.astype(bytes)) for name, x in named.items() if x.dtype == "O"}
    assert fitted.contradictions(named | texts) == []
    assert fitted.decision(tf.constant(outputs)).shape == (24,)
    assert fitted.agrees(outputs, outputs, margin=0).all()
    assert not fitted.agrees(outputs[::-1], outputs, margin=0).all()
    assert fitted.row(outputs[0])[-len(task.names) :] == outputs[0].tolist()
    assert fitted.inconsistency(outputs) == ""


def test_a_scaled_task_says_so_to_the_model(task):
    values = task.targets(records(task.name)).values
    scaled = task.scaled(values)
    assert restore_task(json.loads(json.dumps(describe_task(scaled))), task.names) == scaled
    inputs = keras.Input((4, 4, 8))
    tensor = inputs
    for layer in scaled.head(ModelSpec(), seed=0):
        tensor = layer(tensor)
    model = keras.Model(inputs, tensor)
    scaled.initialise(model)
    assert np.isfinite(model(np.ones((1, 4, 4, 8), np.float32))).all()
    assert np.all(scaled.output_scale > 0)
