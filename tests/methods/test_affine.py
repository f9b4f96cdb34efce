"""Affine training: exactly the scales and offsets of unfrozen stages move, statistics never."""

import keras
import numpy as np
import pytest
from fitting_small import fit_small
from listener import Listener
from small_models import make_classifier, weights_by_stage

from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.methods.affine import Affine
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.training.objective import PhaseContext
from keras_transfer.training.phases import apply_phase, is_batchnorm

AFFINE = PhaseSpec(
    name="affine", epochs=2, unfreeze="stage2", learning_rate=1e-2, layer_decay=0.5, method="affine"
)
SPEC = RunSpec(
    phases=(PhaseSpec(epochs=1), AFFINE),
    training=TrainingSpec(refit=False, rollback=False),
    cache=CacheSpec(precision="float32"),
)


def train(tmp_path, changes=None, **arguments):
    return fit_small(override(SPEC, changes or {}), tmp_path, Listener(), **arguments)


@pytest.mark.parametrize("lowest", ["stage2", "stage1"])
def test_exactly_scales_offsets_and_the_head_move(lowest, tmp_path):
    start = make_classifier("small", seed=SPEC.seed)
    classifier, (_, outcome) = train(tmp_path, {"phases.1.unfreeze": lowest})
    trained = {"stage1", "stage2"} if lowest == "stage1" else {"stage2"}
    before = weights_by_stage(start)
    num_trained = classifier.model.get_layer("logits").count_params()
    for stage, values in weights_by_stage(classifier).items():
        paths = [v.path for v in classifier.variables_of(stage) if "int" not in v.dtype]
        for path, value, old in zip(paths, values, before[stage], strict=True):
            is_affine = stage in trained and path.endswith(("_bn/gamma", "_bn/beta"))
            assert np.array_equal(value, old) is not (is_affine or stage == "head"), path
            num_trained += value.size if is_affine else 0
    assert outcome.num_trainable == num_trained


def test_training_reads_the_kept_statistics_as_validation_does(tmp_path):
    """One step at rate 0: the logged training loss is that of inference on the same images."""
    still = {
        "phases.1.learning_rate": 0.0,
        "phases.1.epochs": 1,
        "training.label_smoothing": 0.0,
        "training.batch_size": 96,
        "views.count": 1,
        "views.policy": "none",
    }
    _, (first, second) = train(tmp_path, still)
    assert second.history[0]["val_loss"] == pytest.approx(first.val_loss, rel=1e-4)
    again = train(tmp_path, {**still, "phases.1.method": "supervised"})[1][1]
    assert second.history[0]["loss"] == pytest.approx(again.history[0]["loss"], rel=1e-4)


def test_the_network_in_training_is_the_network_before(tmp_path):
    """Of a MobileNet, whose graph gives its BatchNormalization layers a mask."""
    classifier = make_classifier("mobilenet_0.25", dropout=0.0)
    for layer in classifier.model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            drawn = np.random.default_rng(0).uniform(0.5, 2, layer.moving_mean.shape)
            layer.moving_mean.assign(drawn)
            layer.moving_variance.assign(drawn)
    context = PhaseContext(SPEC, classifier.task, False, SilentReporter(), None)
    model = Affine().prepare(context, AFFINE, classifier.model).model
    assert apply_phase(classifier, AFFINE, trains=is_batchnorm) < classifier.model.count_params()
    images = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    found, expected = model(images, training=True), classifier.model(images, training=False)
    np.testing.assert_array_equal(np.array(found), np.array(expected))


@pytest.mark.parametrize("num_epochs", [2, 3])
def test_a_resumed_run_has_the_same_bits(num_epochs, tmp_path):
    expected = weights_by_stage(train(tmp_path)[0])
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    train(tmp_path, run=run, num_epochs=num_epochs)
    resumed = weights_by_stage(train(tmp_path, run=run)[0])
    for stage, values in expected.items():
        for one, other in zip(values, resumed[stage], strict=True):
            np.testing.assert_array_equal(one, other)


def test_phases_that_cannot_be_affine_are_refused(tmp_path):
    with pytest.raises(SpecError, match="no scales and offsets"):
        train(tmp_path, {"phases.1.unfreeze": "head"})
    with pytest.raises(SpecError, match="move the statistics"):
        train(tmp_path, {"phases.1.train_batchnorm": True})
