"""Several targets: masks, closed forms, and equality with each target's own task."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_transfer.config import make_spec, override
from keras_transfer.data.records import Record
from keras_transfer.errors import DataError, SpecError
from keras_transfer.models.activations import activate
from keras_transfer.specs import ModelSpec, PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.tasks.joint_losses import RATE
from keras_transfer.tasks.linear_head import HeadFeatures
from keras_transfer.tasks.multi_task import MultiTask
from keras_transfer.tasks.registry import make_task, read_task, source_of
from keras_transfer.tasks.task import Task
from keras_transfer.training.selection import best_temperature

TRAINING = TrainingSpec()
TARGETS = {"kind": "single_label", "size": "regression", "tags": "multi_label"}
CELLS = [
    ("b", "1.5", "x|y"),
    ("a", "", "x"),
    ("", "7", ""),
    ("c", "-3", "?"),
    ("", "", "?"),
    ("a", "2", "y"),
]
"""Cells of the three targets, taken in turn."""


def items(columns: tuple[int, ...] = (0, 1, 2), size: int = 36) -> list[Record]:
    rows = [CELLS[row % len(CELLS)] for row in range(size)]
    return [Record(f"{n}.png", tuple(row[c] for c in columns)) for n, row in enumerate(rows)]


def made(
    targets=TARGETS, columns: tuple[int, ...] = (0, 1, 2), weighting="equal"
) -> tuple[MultiTask, np.ndarray]:
    """The task of some columns, scaled on its values, and these."""
    spec = RunSpec(task="multi_task", task_options={"targets": targets, "weighting": weighting})
    task = make_task(spec, items(columns))
    values = task.targets(items(columns)).values
    return task.scaled(values), values


def alone(number: int) -> tuple[Task, np.ndarray, np.ndarray]:
    """The task of one column on the images where it is known, its values, and their rows."""
    column, kind = list(TARGETS.items())[number]
    own = items((number,))
    unknown = ("?",) if kind == "multi_label" else ("",)
    rows = np.array([n for n, record in enumerate(own) if record.target != unknown])
    own = [own[row] for row in rows]
    task = make_task(override(RunSpec(task=kind), {"data.label_column": column}), own)
    values = task.targets(own).values
    return task.scaled(values), values, rows


def logits_of(task: Task, size: int = 36, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, len(task.names))).astype(np.float32)


def gradient(task: Task, values, logits, training=TRAINING):
    """The loss, weighed by the task, and its gradient by the logits."""
    variable = tf.Variable(logits)
    weights = task.example_weights(values, training)
    with tf.GradientTape() as tape:
        loss = task.loss(training)(task.encode(values), variable, sample_weight=weights)
    return float(loss), tape.gradient(loss, variable).numpy()


def test_values_encode_and_name_all_targets():
    task, values = made()
    assert task.names == ("kind=a", "kind=b", "kind=c", "size", "tags=x", "tags=y")
    nan = np.nan
    expected = [
        [1, 1.5, 1, 1],
        [0, nan, 1, 0],
        [nan, 7, 0, 0],
        [2, -3, nan, nan],
        [nan, nan, nan, nan],
        [0, 2, 0, 1],
    ]
    np.testing.assert_array_equal(values[:6], np.float32(expected))
    np.testing.assert_array_equal(
        task.encode(values[:3]),
        np.float32([[0, 1, 0, 1.5, 1, 1], [1, 0, 0, nan, 1, 0], [nan, nan, nan, 7, 0, 0]]),
    )
    targets = task.targets(items())
    assert targets.strata_names[:3] == ("kind=a", "kind=b", "kind=c")
    assert "tags=x" in targets.strata_names
    assert not targets.strata[4].any()
    assert targets.strata[0, 1]


def test_the_loss_is_the_sum_of_the_targets_means_over_known_images():
    """So is its gradient: where a target is unknown its logits have none."""
    task, values = made()
    logits = logits_of(task)
    total, by_logits = gradient(task, values, logits)
    expected, start = 0.0, 0
    for number in range(3):
        own, of_task, rows = alone(number)
        columns = slice(start, start + len(own.names))
        loss, by_own = gradient(own, of_task, logits[rows, columns])
        expected += loss
        np.testing.assert_allclose(by_logits[rows, columns], by_own, rtol=2e-5, atol=1e-8)
        unknown = np.setdiff1d(np.arange(36), rows)
        np.testing.assert_array_equal(by_logits[unknown, columns], 0)
        start = columns.stop
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("number", range(3))
def test_one_target_is_its_task_alone(number):
    name, kind = list(TARGETS.items())[number]
    task, values = made({name: kind}, (number,))
    own, of_task, rows = alone(number)
    known = values[rows]
    logits = logits_of(task)[rows]
    np.testing.assert_array_equal(task.encode(known), own.encode(of_task))
    for training in (TRAINING, TrainingSpec(class_weights="balanced")):
        if kind == "regression" and training is not TRAINING:
            continue
        ours, theirs = (
            gradient(each, of_each, logits, training)
            for each, of_each in ((task.scaled(known), known), (own, of_task))
        )
        assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=2e-6, atol=1e-9)
    outputs = activate(logits, task.activation)
    np.testing.assert_array_equal(outputs, activate(logits, own.activation))
    np.testing.assert_array_equal(
        task.example_losses(known, outputs), own.example_losses(of_task, outputs)
    )
    (divisor,), loss = best_temperature(task, known, outputs)
    assert (divisor, loss) == best_temperature(own, of_task, outputs)
    views = np.random.default_rng(1).normal(size=(36, 2, 5)).astype(np.float32)
    features = HeadFeatures(lambda at, view: views[at, view], *views.shape)
    ours = task.solve_head(features, values, TRAINING)
    theirs = own.solve_head(features.take(rows), of_task, TRAINING)
    np.testing.assert_array_equal(ours.kernel, theirs.kernel)
    np.testing.assert_array_equal(ours.bias, theirs.bias)
    assert ours.strengths == (theirs.strength,)
    found = task.evaluate(known, outputs).targets[name]
    assert found.to_dict() == own.evaluate(of_task, outputs).to_dict()


def test_the_head_of_each_target_is_solved_on_its_own_images():
    task, values = made()
    views = np.random.default_rng(1).normal(size=(36, 2, 5)).astype(np.float32)
    features = HeadFeatures(lambda at, view: views[at, view], *views.shape)
    head = task.solve_head(features, values, TRAINING, strengths=task.strengths)
    start = 0
    for number in range(3):
        own, of_task, rows = alone(number)
        best = own.solve_head(features.take(rows), of_task, TRAINING, strengths=own.strengths)
        columns = slice(start, start + len(own.names))
        np.testing.assert_array_equal(head.kernel[:, columns], best.kernel)
        assert head.strengths[number] == best.strength
        start = columns.stop


def test_each_target_has_its_own_temperature():
    task, values = made()
    known = values[~np.isnan(values).any(axis=1)]
    outputs = activate(3 * logits_of(task, len(known)), task.activation)
    divisors, _ = best_temperature(task, known, outputs)
    assert divisors[1] == 1.0
    own, *_ = alone(0)
    expected, _ = best_temperature(own, known[:, 0].astype(int), outputs[:, :3])
    assert divisors[0] == pytest.approx(expected, abs=1e-3)


def test_learned_weights_start_equal_and_end_at_the_logarithms_of_the_losses():
    task, values = made()
    learned, _ = made(weighting="uncertainty")
    logits, encoded = logits_of(task), task.encode(values)
    weights = task.example_weights(values, TRAINING)
    equal, weighed = task.loss(TRAINING), learned.loss(TRAINING)
    assert equal.layer is None
    np.testing.assert_allclose(weighed(encoded, logits), equal(encoded, logits), rtol=1e-6)
    losses = np.array([np.mean(part.losses(encoded, logits)[0] * weights) for part in equal.parts])
    (variable,) = weighed.layer.trainable_variables
    optimizer = keras.optimizers.Adam(1e-2)
    optimizer.build([variable])
    for _ in range(300):
        with tf.GradientTape() as tape:
            loss = weighed(encoded, logits, sample_weight=weights)
        optimizer.apply([tape.gradient(loss, variable.value)], [variable])
        optimizer.learning_rate.assign(optimizer.learning_rate * 0.98)
    logarithms = RATE * np.asarray(variable.value)
    np.testing.assert_allclose(logarithms, np.log(losses), atol=1e-2)
    assert float(loss) == pytest.approx(np.sum(1 + np.log(losses)), abs=1e-3)


def test_numbers_have_units_and_other_outputs_keep_their_logits():
    task, _ = made()
    inputs = keras.Input((1, 1, 4))
    tensor = inputs
    for layer in task.head(ModelSpec(dropout=0), seed=0):
        tensor = layer(tensor)
    model = keras.Model(inputs, tensor)
    task.initialise(model)
    kernel, bias = np.zeros((4, 6)), np.arange(6.0)
    model.get_layer("logits").set_weights([kernel, bias])
    size = task.parts[1].task
    expected = np.float32([0, 1, 2, 3 * size.deviations[0] + size.means[0], 4, 5])
    found = keras.ops.convert_to_numpy(model(np.ones((1, 1, 1, 4), np.float32)))
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[0, [0, 1, 2, 4, 5]], expected[[0, 1, 2, 4, 5]])


def test_columns_are_named_after_their_targets():
    task, values = made()
    names = ["kind_probability_a", "kind_probability_b", "kind_probability_c", "size"]
    numbers = [*names, "tags_probability_x", "tags_probability_y"]
    assert task.columns() == ["kind", "kind_confidence", "tags", *numbers]
    texts = ["true_kind", "kind", "kind_confidence", "kind_correct", "true_size", "true_tags"]
    assert task.columns(labelled=True) == [*texts, "tags", *numbers]
    outputs = np.float32([0.5, 0.25, 0.25, 1.25, 0.75, 0.5])
    assert task.row(outputs) == ["a", 0.5, "x|y", *outputs]
    assert task.row(outputs, values[0])[:7] == ["b", "a", 0.5, 0, 1.5, "x|y", "x|y"]
    assert task.row(outputs, values[4])[:7] == ["", "a", 0.5, "", "", "?", "x|y"]
    assert task.decided(outputs) == ("kind=a", "tags=x", "tags=y")
    assert task.format_output(1.25, 3) == "1.25"
    assert task.format_output(0.5, 4) == "50.0 %"


def test_figures_are_those_of_known_images():
    task, values = made()
    outputs = activate(logits_of(task), task.activation)
    found = task.evaluate(values, outputs)
    for number, name in enumerate(TARGETS):
        own, of_task, rows = alone(number)
        start = [0, 3, 4][number]
        expected = own.evaluate(of_task, outputs[rows, start : start + len(own.names)])
        assert found.targets[name].to_dict() == expected.to_dict()
    losses = task.example_losses(values, outputs)
    assert found.summed_loss == pytest.approx(losses.mean())
    only = values.copy()
    only[:, 0] = np.nan
    assert list(task.evaluate(only, outputs).targets) == ["size", "tags"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "task multi_task has no targets"),
        ({"targets": {"kind": "single"}}, r"targets\.kind: there is no task 'single'"),
        ({"targets": {"kind": "multi_task"}}, r"targets\.kind: there is no task 'multi_task'"),
        ({"targets": {"kind": {"columns": "a"}}}, r"targets\.kind does not name a task"),
        ({"targets": {"kind": 3}}, r"targets\.kind does not name a task"),
        ({"targets": {"kind": {"task": "multi_label", "separater": ";"}}}, "separater"),
        ({"targets": {"my kind": "regression"}}, "'my kind' cannot name a target"),
        ({"targets": {"values": "regression", "x_bytes": "regression"}}, "'values', 'x_bytes'"),
        ({"targets": TARGETS | {"tags_present": "regression"}}, "'tags_present' cannot name"),
        ({"targets": TARGETS, "weighting": "pcgrad"}, "weighting cannot be 'pcgrad'"),
    ],
)
def test_targets_that_are_not_defined_are_refused(options, complaint):
    with pytest.raises(SpecError, match=complaint):
        make_task(RunSpec(task="multi_task", task_options=options), items())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data.label_column": "kind"}, "are those in task_options.targets"),
        ({"data.source": "folder"}, "reads its targets from columns"),
        ({"training.sampling": "balanced"}, "sampling=balanced is not defined"),
    ],
)
def test_settings_that_contradict_several_targets_are_refused(change, complaint):
    spec = RunSpec(task="multi_task", task_options={"targets": TARGETS})
    spec = override(spec, {"data.source": "csv", "data.path": "t.csv", **change})
    read = make_task if "training.sampling" in change else lambda spec, _: source_of(spec)
    with pytest.raises(SpecError, match=complaint):
        read(spec, items())


@pytest.mark.parametrize(
    ("backend", "method", "complaint"),
    [("jax", "supervised", "on TensorFlow only"), ("tensorflow", "l2_sp", "'frozen' by l2_sp")],
)
def test_gradients_are_projected_on_tensorflow_in_phases_without_a_loss_of_their_own(
    backend, method, complaint, monkeypatch
):
    options = {"targets": TARGETS, "project_gradients": True}
    spec = RunSpec(task="multi_task", task_options=options, phases=(PhaseSpec(method=method),))
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    with pytest.raises(SpecError, match=complaint):
        make_task(spec, items())


@pytest.mark.parametrize("name", ["kind_confidence", "kind_probability_a", "true_kind"])
def test_targets_whose_columns_would_have_one_name_are_refused(name):
    with pytest.raises(SpecError, match=name):
        made({"kind": "single_label", name: "regression"}, (0, 1))


def test_all_targets_with_nothing_to_learn_are_named_at_once():
    rows = [Record(f"{n}.png", ("a", "1", "")) for n in range(6)]
    spec = RunSpec(
        task="multi_task",
        task_options={"targets": {"one": "single_label", "same": "regression", "no": "regression"}},
    )
    with pytest.raises(DataError) as raised:
        make_task(spec, rows)
    assert raised.value.what.startswith("target 'one': ")
    assert "has fewer than two classes" in raised.value.what
    assert "target 'same': column 'same' of the source is empty or constant" in raised.value.what
    assert "target 'no': all cells are empty" in raised.value.what


def test_columns_of_a_table_are_the_targets(tmp_path):
    for number in range(6):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    lines = ["path,kind,Leaf length,x,y"]
    lines += [f"{n}.png,{'ab'[n % 2]},{n},{n % 2},{int(n > 2)}" for n in range(6)]
    file = tmp_path / "t.csv"
    file.write_text("\n".join(lines))
    targets = {
        "kind": "single_label",
        "leaf": {"task": "regression", "columns": "Leaf length"},
        "tags": {"task": "multi_label", "columns": "x, y"},
    }
    spec = make_spec(file, task="multi_task", task_options={"targets": targets})
    task, records = read_task(spec)
    assert task.names == ("kind=a", "kind=b", "leaf", "tags=x", "tags=y")
    np.testing.assert_array_equal(records.targets.values[3], [1, 3, 1, 1])
    targets["kidn"] = "single_label"
    spec = make_spec(file, task="multi_task", task_options={"targets": targets})
    with pytest.raises(DataError, match="has no column 'kidn'") as raised:
        read_task(spec)
    assert "task_options" in raised.value.fix


def test_balanced_weights_belong_to_each_target():
    task, values = made()
    balanced = TrainingSpec(class_weights="balanced")
    logits = logits_of(task)
    _, plain = gradient(task, values, logits)
    _, weighed = gradient(task, values, logits, balanced)
    # 12 of class a and 6 each of b and c.
    factors = {0: 24 / (3 * 12), 1: 24 / (3 * 6), 2: 24 / (3 * 6)}
    for row, label in enumerate(values[:, 0]):
        if not np.isnan(label):
            expected = factors[int(label)] * plain[row, :3]
            np.testing.assert_allclose(weighed[row, :3], expected, rtol=1e-5)
    np.testing.assert_allclose(weighed[:, 3], plain[:, 3], rtol=1e-6)
