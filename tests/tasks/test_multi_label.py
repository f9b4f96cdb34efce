"""Multi-label classification in closed form."""

import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn import metrics

from keras_transfer.config import override
from keras_transfer.data.records import Record, Records
from keras_transfer.data.splits import make_splits
from keras_transfer.errors import DataError, SpecError
from keras_transfer.models.activations import activate
from keras_transfer.specs import DataSpec, RunSpec, TrainingSpec
from keras_transfer.tasks.multi_label import (
    NO_LABEL,
    BinnedAveragePrecision,
    KnownLabelsCrossEntropy,
    MultiLabel,
    best_threshold,
)
from keras_transfer.tasks.registry import make_task

SPEC = RunSpec(task="multi_label")
COLUMNS = override(SPEC, {"data.label_column": "red,round"})


def some(size: int = 60, num_labels: int = 3, *, missing: float = 0.2, seed: int = 0):
    """Values with missing labels, and logits that know a little about them."""
    generator = np.random.default_rng(seed)
    values = (generator.random((size, num_labels)) < 0.4).astype(np.float32)
    logits = (2 * values - 1 + 2 * generator.normal(size=values.shape)).astype(np.float32)
    values[generator.random(values.shape) < missing] = np.nan
    return values, logits


def task_of(num_labels: int = 3) -> MultiLabel:
    return MultiLabel(tuple("abcdef"[:num_labels]))


def test_cells_of_several_labels():
    cells = ["rose|yellow", "", "?", " yellow | round ", "", "", "round|round"]
    items = [Record(f"{row}.png", (cell,)) for row, cell in enumerate(cells)]
    task = make_task(SPEC, items)
    assert task.names == ("rose", "round", "yellow")
    targets = task.targets(items)
    expected = [[1, 0, 1], [0] * 3, [np.nan] * 3, [0, 1, 1], [0] * 3, [0] * 3, [0, 1, 0]]
    np.testing.assert_array_equal(targets.values, np.float32(expected))
    assert targets.strata_names == (*task.names, NO_LABEL)
    np.testing.assert_array_equal(targets.strata[:, 3], [0, 1, 0, 0, 1, 1, 0])
    assert not targets.strata[2].any()


def test_separator_and_missing_are_options():
    spec = override(SPEC, {"task_options": {"separator": ";", "missing": "unknown"}})
    items = [Record("a.png", ("a;b|c",)), Record("b.png", ("unknown",))]
    task = make_task(spec, items)
    assert task.names == ("a", "b|c")
    assert np.isnan(task.targets(items).values[1]).all()


def test_columns_of_one_label_each():
    items = [Record("a.png", ("1", "0")), Record("b.png", ("", "1")), Record("c.png", ("?", ""))]
    task = make_task(COLUMNS, items)
    assert task.names == ("red", "round")
    np.testing.assert_array_equal(
        task.targets(items).values, np.float32([[1, 0], [np.nan, 1], [np.nan, np.nan]])
    )


def test_cells_that_mean_nothing_are_named():
    with pytest.raises(DataError, match=r"b\.png has a cell in column 'round'"):
        make_task(COLUMNS, ()).targets([Record("b.png", ("1", "yes"))])
    with pytest.raises(DataError, match=r"c\.png has a label") as raised:
        MultiLabel(("ant", "bee")).targets([Record("c.png", ("bees",))])
    assert "bee" in raised.value.fix
    with pytest.raises(DataError, match="has no label"):
        make_task(SPEC, [Record("a.png", ("",))])
    with pytest.raises(DataError, match="differ only by case"):
        make_task(SPEC, [Record("a.png", ("Ant|ant",))])


@pytest.mark.parametrize(
    "change", [{"training.sampling": "balanced"}, {"task_options": {"separator": ""}}]
)
def test_settings_that_are_not_defined_are_refused(change):
    with pytest.raises(SpecError):
        make_task(override(SPEC, change), [Record("a.png", ("a",))])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0]])
def test_the_loss_is_cross_entropy_of_known_labels(smoothing, weights):
    values, logits = some()
    values[0] = np.nan
    expected = []
    for row, scores in zip(values, logits.astype(np.float64), strict=True):
        losses = []
        for label, score, weight in zip(row, scores, weights or [1] * 3, strict=True):
            if np.isnan(label):
                continue
            target, p = label * (1 - smoothing) + smoothing / 2, 1 / (1 + np.exp(-score))
            losses.append(-weight * target * np.log(p) - (1 - target) * np.log(1 - p))
        expected.append(np.mean(losses) if losses else 0)
    loss = KnownLabelsCrossEntropy(weights, label_smoothing=smoothing, reduction="none")
    np.testing.assert_allclose(loss(values, logits), expected, rtol=1e-5, atol=1e-6)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    np.testing.assert_array_equal(again(values, logits), loss(values, logits))


def test_without_smoothing_the_loss_is_that_of_examples():
    values, logits = some()
    task = task_of()
    losses = task.example_losses(values, activate(logits, "sigmoid"))
    loss = float(task.loss(TrainingSpec())(values, logits))
    assert loss == pytest.approx(losses.mean(), rel=1e-5)


def test_unknown_labels_have_no_gradient():
    import tensorflow as tf

    values, logits = some()
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = task_of().loss(TrainingSpec())(values, variable)
    gradient = tape.gradient(loss, variable).numpy()
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient == 0, np.isnan(values))


def test_balanced_weights_are_negatives_for_each_positive():
    values, _ = some()
    balanced = TrainingSpec(class_weights="balanced")
    task = task_of().scaled(values)
    expected = (values == 0).sum(axis=0) / (values == 1).sum(axis=0)
    assert task.loss(balanced).positive_weights == pytest.approx(expected.tolist())
    assert task.loss(TrainingSpec()).positive_weights is None
    values[:, 1] = 0
    with pytest.raises(DataError, match="class_weights=balanced needs"):
        task.example_weights(values, balanced)


def test_average_precision_is_that_of_scikit_learn():
    values, logits = some(missing=0.3)
    outputs = np.round(activate(logits, "sigmoid"), 1)  # Many are equal.
    found = task_of().evaluate(values, outputs)
    expected = []
    for column, scores in zip(values.T, outputs.T, strict=True):
        known = ~np.isnan(column)
        expected.append(metrics.average_precision_score(column[known], scores[known]))
    figures = [label.average_precision for label in found.per_label.values()]
    np.testing.assert_allclose(figures, expected, rtol=1e-12)
    assert found.mean_average_precision == pytest.approx(np.mean(expected))


def test_a_label_that_no_image_has_is_left_out_of_the_mean():
    values, logits = some()
    values[:, 2] = 0
    outputs = activate(logits, "sigmoid")
    with warnings.catch_warnings(action="error"):
        found = task_of().evaluate(values, outputs)
    averages = [label.average_precision for label in found.per_label.values()]
    assert averages[2] is None
    assert found.mean_average_precision == pytest.approx(np.mean(averages[:2]))
    assert found.tables()[0].rows[2][1] == "-"
    with pytest.raises(DataError, match="not defined"):
        task_of().headline(0 * values, outputs)


def test_precision_recall_and_f1_are_those_of_scikit_learn():
    values, logits = some(missing=0)
    outputs = activate(logits, "sigmoid")
    task = task_of().fitted(values, outputs)
    found, decided = task.evaluate(values, outputs), task.present(outputs)
    columns = metrics.precision_recall_fscore_support(values, decided, zero_division=0)
    figures = [[f.precision, f.recall, f.f1, f.num_positive] for f in found.per_label.values()]
    np.testing.assert_allclose(np.transpose(figures), columns)
    for average, value in (("macro", found.macro_f1), ("micro", found.micro_f1)):
        assert value == pytest.approx(metrics.f1_score(values, decided, average=average))
    low, high = found.intervals["micro_f1"]
    assert low <= found.micro_f1 <= high


@pytest.mark.parametrize("seed", range(20))
def test_thresholds_are_the_best_of_all(seed):
    values, logits = some(size=1 + seed, num_labels=1, missing=0, seed=seed)
    targets, scores = values[:, 0], np.round(activate(logits, "sigmoid")[:, 0], 1)
    threshold = best_threshold(targets, scores)
    if not targets.any():
        assert threshold == 0.5
        return
    candidates = [metrics.f1_score(targets, scores >= score) for score in scores]
    assert metrics.f1_score(targets, scores >= threshold) == pytest.approx(max(candidates))


def test_a_threshold_between_neighbouring_floats_is_the_higher():
    high = np.nextafter(np.float32(0.5), np.float32(1))
    scores = np.array([high, 0.5], np.float32)
    assert best_threshold(np.array([1, 0]), scores) == high


def test_the_metric_of_batches_is_the_exact_one_up_to_bins():
    values, logits = some(size=2000)
    values[:, 2] = np.where(np.isnan(values[:, 2]), np.nan, 0)
    metric = BinnedAveragePrecision(3)
    weights = np.random.default_rng(1).choice([0, 0.5, 2], 2000)
    for part in np.split(np.arange(2000), 10):
        metric.update_state(values[part], logits[part], sample_weight=weights[part])
    counted = weights > 0
    expected = task_of().headline(values[counted], activate(logits[counted], "sigmoid")).value
    assert float(metric.result()) == pytest.approx(expected, abs=2e-3)
    metric.reset_state()
    metric.update_state(values[:100] * np.nan, logits[:100])
    assert float(metric.result()) == 0


def test_rows_and_decisions_name_the_most_probable_label_first():
    import tensorflow as tf

    task = MultiLabel(("a", "b", "c"), thresholds=(0.25, 0.5, 0.5))
    outputs = np.float32([[0.25, 0.75, 0.5], [0, 0, 0]])
    assert task.row(outputs[0]) == ["b|c|a", 0.25, 0.75, 0.5]
    assert task.row(outputs[1], np.float32([1, np.nan, 1]))[:2] == ["a|c", ""]
    assert task.row(outputs[1], np.float32([np.nan] * 3))[0] == "?"
    assert task.decision(tf.constant(outputs)).numpy().tolist() == [b"b|c|a", b""]
    served = task.served_names(task.served(tf.constant(outputs)))
    assert served["labels"].numpy().tolist() == [[b"b", b"c", b"a"], [b""] * 3]


def test_served_contradictions_are_found():
    task = MultiLabel(("a", "b"))
    served = {
        "labels": np.array([["a", "b"], ["", ""]]),
        "label_names": np.array([["b", "a"]] * 2),
        "probabilities": np.float32([[0.6, 0.7], [0.9, 0]]),
        "thresholds": np.full((2, 2), 0.4, np.float32),
    }
    assert len(task.contradictions(served)) == 4


def test_near_a_threshold_either_decision_is_right():
    task = MultiLabel(("a", "b"))
    expected, outputs = np.float32([[0.501, 0.9]]), np.float32([[0.499, 0.9]])
    assert not task.agrees(outputs, expected, margin=0)[0]
    assert task.agrees(outputs, expected, margin=0.01)[0]


@pytest.mark.parametrize("seed", range(5))
def test_rare_labels_are_in_every_split(seed):
    generator = np.random.default_rng(seed)
    cells = ["|".join(np.array(["a", "b"])[generator.random(2) < 0.5]) for _ in range(60)]
    for row in generator.permutation(60)[:3]:
        cells[row] = "|".join([*filter(None, [cells[row]]), "rare"])
    items = [Record(f"{row:02d}.png", (c,), digest=f"{row:064x}") for row, c in enumerate(cells)]
    task = make_task(SPEC, items)
    records = Records(tuple(items), task.targets(items), Path("/nowhere"))
    splits = make_splits(records, DataSpec(), seed=seed)
    for part in (splits.train, splits.val, splits.test):
        assert records.targets.strata[part].any(axis=0).all()
