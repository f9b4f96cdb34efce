"""Single-label classification in closed form."""

import keras
import numpy as np
import pytest

from keras_transfer.config import override
from keras_transfer.data.records import Record
from keras_transfer.errors import DataError
from keras_transfer.evaluation.intervals import wilson
from keras_transfer.specs import RunSpec, TrainingSpec
from keras_transfer.tasks.registry import make_task
from keras_transfer.tasks.single_label import Accuracy, SingleLabel

TASK = SingleLabel(("ant", "bee", "cat"))
VALUES = np.array([0, 2, 1, 1])
OUTPUTS = np.float32([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.25, 0.5, 0.25], [0, 1, 0]])


def test_classes_are_sorted_and_every_class_is_a_stratum():
    items = [Record(f"{name}.png", (name,)) for name in ("cat", "ant", "bee", "ant")]
    task = make_task(RunSpec(), items)
    assert task.names == ("ant", "bee", "cat")
    targets = task.targets(items)
    np.testing.assert_array_equal(targets.values, [2, 0, 1, 0])
    np.testing.assert_array_equal(targets.strata, task.encode(targets.values).astype(bool))
    assert (targets.strata_names, targets.kind) == (task.names, "class")


@pytest.mark.parametrize("target", [("",), ("ant", "bee"), ()])
def test_an_image_without_exactly_one_label_is_named(target):
    items = [Record("a.png", ("ant",)), Record("b.png", target)]
    for read in (TASK.targets, lambda items: make_task(RunSpec(), items)):
        with pytest.raises(DataError, match=r"b\.png does not have one label"):
            read(items)


def test_an_unknown_label_is_named_with_the_nearest_class():
    with pytest.raises(DataError, match="not among the model's 3 classes") as raised:
        TASK.targets([Record("x.png", ("bees",)), Record("y.png", ("owl",))])
    assert raised.value.received == "'bees', 'owl', as of x.png"
    assert "bee" in raised.value.fix
    with pytest.raises(DataError) as raised:
        TASK.targets([Record("y.png", ("owl",))])
    assert "`extend`" in raised.value.fix


def test_a_folder_one_level_too_high_is_told_with_the_right_one(tmp_path):
    items = [Record(f"all/{name}/0.png", ("all",)) for name in ("ant", "bee")]
    spec = override(RunSpec(), {"data.path": str(tmp_path)})
    with pytest.raises(DataError, match="fewer than two classes") as raised:
        make_task(spec, items)
    assert raised.value.fix == "add images of a second class"
    for name in ("ant", "bee"):
        (tmp_path / "all" / name).mkdir(parents=True)
    with pytest.raises(DataError) as raised:
        make_task(spec, items)
    assert raised.value.fix == f"if ant, bee are the classes, give the folder {tmp_path / 'all'}"


def test_scores_losses_and_headline():
    np.testing.assert_array_equal(TASK.example_scores(VALUES, OUTPUTS), [1, 0, 1, 1])
    expected = -np.log(np.float64(OUTPUTS[np.arange(4), VALUES]))
    np.testing.assert_array_equal(TASK.example_losses(VALUES, OUTPUTS), expected)
    headline = TASK.headline(VALUES, OUTPUTS)
    assert (headline.value, headline.interval) == (0.75, wilson(3, 4))
    assert np.isfinite(TASK.example_losses(np.array([0]), OUTPUTS[3:]))


def test_the_loss_is_cross_entropy_with_label_smoothing():
    logits = np.log(np.maximum(OUTPUTS, 1e-6))
    encoded = TASK.encode(VALUES)
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    found = TASK.loss(TrainingSpec(label_smoothing=0.1))
    assert float(found(encoded, logits)) == float(expected(encoded, logits))


def test_balanced_weights_are_inverse_class_frequencies():
    weights = TASK.example_weights(VALUES, TrainingSpec(class_weights="balanced"))
    np.testing.assert_allclose(weights, [4 / 3, 4 / 3, 2 / 3, 2 / 3], rtol=1e-6)


def test_accuracy_counts_examples_whatever_they_weigh():
    metric = Accuracy(name="accuracy")
    metric.update_state(TASK.encode(VALUES), OUTPUTS, sample_weight=np.float32([5, 1, 0, 0.1]))
    assert float(metric.result()) == pytest.approx(2 / 3)


def test_rows_hold_the_prediction_and_what_is_true():
    assert [str(x) for x in TASK.row(OUTPUTS[1])] == ["ant", "0.5", "0.5", "0.3", "0.2"]
    assert [str(x) for x in TASK.row(OUTPUTS[1], 2)] == [
        "cat",
        "ant",
        "0.5",
        "0",
        "0.5",
        "0.3",
        "0.2",
    ]
    assert TASK.columns()[:2] == ["prediction", "confidence"]
    assert TASK.columns(labelled=True)[:4] == ["label", "prediction", "confidence", "correct"]
