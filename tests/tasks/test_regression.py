"""Regression in closed form."""

import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy import special
from sklearn import metrics

from keras_transfer.config import override
from keras_transfer.data.records import Record, Records
from keras_transfer.data.splits import make_splits
from keras_transfer.errors import DataError, SpecError
from keras_transfer.models.folding import fold
from keras_transfer.specs import DataSpec, ModelSpec, RunSpec, TrainingSpec
from keras_transfer.tasks.registry import make_task
from keras_transfer.tasks.regression import Regression, StandardisedHuber

SPEC = RunSpec(task="regression")
TWO = override(SPEC, {"data.label_column": "height, width"})
TASK = Regression(("height", "width"), means=(10, 3000), deviations=(2, 500))


def some(size: int = 50, *, missing: float = 0.2):
    """Values with missing cells, and predictions."""
    generator = np.random.default_rng(0)
    values = (generator.normal(size=(size, 2)) * [2, 500] + [10, 3000]).astype(np.float32)
    outputs = (values + generator.standard_t(2, size=values.shape) * [1, 400]).astype(np.float32)
    values[generator.random(values.shape) < missing] = np.nan
    return values, outputs


def test_cells_are_numbers_or_missing():
    items = [
        Record("a.png", ("1", "-2.5")),
        Record("b.png", ("", "1e3")),
        Record("c.png", ("3", "")),
    ]
    task = make_task(TWO, items)
    assert task.names == ("height", "width")
    np.testing.assert_array_equal(
        task.targets(items).values, np.float32([[1, -2.5], [np.nan, 1000], [3, np.nan]])
    )


@pytest.mark.parametrize("cell", ["tall", "inf", "-inf", "nan", "1e300", "1,5"])
def test_other_cells_are_named(cell):
    with pytest.raises(DataError, match=r"b\.png has no finite number in column 'width'"):
        TASK.targets([Record("b.png", ("1", cell))])


@pytest.mark.parametrize("cells", [["2", "2", ""], ["", "", ""]])
def test_columns_with_nothing_to_learn_are_named(cells):
    items = [Record("x.png", (str(row), cell)) for row, cell in enumerate(cells)]
    with pytest.raises(DataError, match="column 'width' of the source is empty or constant"):
        make_task(TWO, items)
    with pytest.raises(DataError, match="column 'width' of the training split"):
        TASK.scaled(TASK.targets(items).values)


@pytest.mark.parametrize(
    "change",
    [
        {"training.sampling": "balanced"},
        {"training.class_weights": "balanced"},
        {"training.label_smoothing": 0.1},
    ],
)
def test_settings_of_classes_are_refused(change):
    with pytest.raises(SpecError, match="is defined for classes only"):
        make_task(override(SPEC, change), [Record("a.png", ("1",)), Record("b.png", ("2",))])


def test_the_loss_is_huber_of_standardised_errors():
    values, outputs = some()
    values[0] = np.nan
    errors = (values.astype(np.float64) - outputs) / [2, 500]
    known = ~np.isnan(values)
    losses = np.where(known, special.huber(1, errors), 0)
    expected = losses.sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    loss = StandardisedHuber([2, 500], reduction="none")
    np.testing.assert_allclose(loss(values, outputs), expected, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(TASK.example_losses(values, outputs), expected)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    np.testing.assert_array_equal(again(values, outputs), loss(values, outputs))


def test_missing_values_have_no_gradient():
    import tensorflow as tf

    values, outputs = some()
    variable = tf.Variable(outputs)
    with tf.GradientTape() as tape:
        loss = TASK.loss(TrainingSpec())(values, variable)
    gradient = tape.gradient(loss, variable).numpy()
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient == 0, np.isnan(values))


def test_the_head_returns_to_the_users_units():
    values, _ = some()
    task = Regression(("height", "width")).scaled(values)
    np.testing.assert_allclose(task.means, np.nanmean(values, axis=0), rtol=1e-5)
    np.testing.assert_allclose(task.deviations, np.nanstd(values, axis=0), rtol=1e-5)
    inputs = keras.Input((2, 2, 4))
    tensor = inputs
    for layer in task.head(ModelSpec(), seed=0):
        tensor = layer(tensor)
    model = keras.Model(inputs, tensor)
    task.initialise(model)
    pixels = np.random.default_rng(0).normal(size=(3, 2, 2, 4)).astype(np.float32)
    standardised = keras.Model(inputs, model.get_layer("logits").output)(pixels)
    expected = np.asarray(standardised) * task.deviations + task.means
    np.testing.assert_allclose(model(pixels), expected, rtol=1e-5)
    np.testing.assert_allclose(fold(model)(pixels), expected, rtol=1e-5)
    assert [v.name for v in model.trainable_variables] == ["kernel", "bias"]


def test_a_saved_model_keeps_its_units(tmp_path):
    inputs = keras.Input((1, 1, 2))
    layers = TASK.head(ModelSpec(dropout=0), seed=0)
    outputs = layers[-1](layers[0](inputs))
    model = keras.Model(inputs, outputs)
    TASK.initialise(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(np.float32([[[[1, -1]]]])), [[12, 2500]])


def test_figures_are_those_of_scikit_learn():
    values, outputs = some()
    found = TASK.evaluate(values, outputs)
    for k, figures in enumerate(found.per_column.values()):
        known = ~np.isnan(values[:, k])
        pair = values[known, k].astype(np.float64), outputs[known, k].astype(np.float64)
        assert figures.mean_absolute_error == pytest.approx(metrics.mean_absolute_error(*pair))
        rmse = metrics.root_mean_squared_error(*pair)
        assert figures.root_mean_squared_error == pytest.approx(rmse)
        assert figures.r2 == pytest.approx(metrics.r2_score(*pair))
        low, high = figures.mean_absolute_error_interval
        assert low <= figures.mean_absolute_error <= high
        assert figures.num_known == known.sum()
    columns = list(found.per_column.values())
    errors = [columns[0].mean_absolute_error / 2, columns[1].mean_absolute_error / 500]
    assert found.headline.value == pytest.approx(np.mean(errors))
    assert found.overall["r2"] == pytest.approx(np.mean([c.r2 for c in columns]))


def test_a_single_column_is_evaluated_in_its_own_units():
    values, outputs = some(missing=0)
    task = Regression(("width",), means=(3000,), deviations=(500,))
    found = task.evaluate(values[:, 1:], outputs[:, 1:])
    assert found.headline.name == "mean_absolute_error"
    assert found.headline.value == pytest.approx(np.abs(values - outputs)[:, 1].mean(), rel=1e-5)
    assert found.describe().startswith("Mean absolute error ")


def test_figures_that_are_not_defined_are_left_out():
    values, outputs = some(size=5, missing=0)
    values[:, 0], values[:, 1] = np.nan, 7
    with warnings.catch_warnings(action="error"):
        found = TASK.evaluate(values, outputs)
    height, width = found.per_column.values()
    assert (height.mean_absolute_error, width.r2) == (None, None)
    assert "r2" not in found.overall
    assert found.tables()[0].rows[0][1] == "-"
    with pytest.raises(DataError, match="not defined"):
        TASK.headline(values * np.nan, outputs)


def test_metrics_of_batches_are_those_of_the_evaluation():
    values, outputs = some()
    weights = np.random.default_rng(1).choice([0, 0.5, 2], 50)
    counted = weights > 0
    found = TASK.evaluate(values[counted], outputs[counted])
    for metric in TASK.metrics():
        for part in np.split(np.arange(50), 5):
            metric.update_state(values[part], outputs[part], sample_weight=weights[part])
        assert float(metric.result()) == pytest.approx(found.overall[metric.name], rel=1e-5)


def test_every_range_of_a_column_is_in_every_split():
    numbers = np.random.default_rng(0).lognormal(size=60)
    items = [
        Record(f"{row:02d}.png", (f"{x:.3g}" if row else "",), digest=f"{row:064x}")
        for row, x in enumerate(numbers)
    ]
    task = make_task(SPEC, items)
    targets = task.targets(items)
    assert targets.strata.shape == (60, 5)
    assert not targets.strata[0].any()
    np.testing.assert_array_equal(targets.strata[1:].sum(axis=1), 1)
    assert targets.strata.sum(axis=0).min() >= 11
    splits = make_splits(Records(tuple(items), targets, Path("/nowhere")), DataSpec(), seed=0)
    for part in (splits.train, splits.val, splits.test):
        assert targets.strata[part].any(axis=0).all()


def test_few_different_numbers_make_fewer_ranges():
    items = [Record(f"{row}.png", (str(int(row > 15)),)) for row in range(20)]
    assert make_task(SPEC, items).targets(items).strata.sum(axis=0).tolist() == [16, 4]
    assert TASK.targets([Record("a.png", ("", ""))]).strata.shape == (1, 0)


def test_rows_and_decisions():
    import tensorflow as tf

    outputs = np.float32([[1.5, 2]])
    assert TASK.columns(labelled=True) == ["true_height", "true_width", "height", "width"]
    assert TASK.row(outputs[0], np.float32([1, np.nan])) == [1, "", 1.5, 2]
    assert TASK.decision(tf.constant(outputs)).numpy().tolist() == [b"height=1.5, width=2"]
    near, far = outputs + np.float32([[0.01, 1]]), outputs + np.float32([[0.01, 100]])
    assert TASK.agrees(near, outputs, margin=0)[0]
    assert not TASK.agrees(far, outputs, margin=0)[0]
    assert TASK.agrees(far, outputs, margin=0.3)[0]
