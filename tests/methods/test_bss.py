"""BSS: closed forms of the penalty and its gradient, and whole phases."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from feature_sources import make_source, make_splits
from fitting_small import fit_small
from listener import Listener
from small_models import make_classifier, weights_by_stage

from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.methods.bss import BSS, BSSOptions, smallest_squares
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.training.objective import PhaseContext

SHRUNK = PhaseSpec(
    name="shrunk",
    epochs=2,
    unfreeze="stage2",
    learning_rate=1e-2,
    method="bss",
    method_options={"strength": 0.1, "k": 2},
)
SPEC = RunSpec(
    phases=(PhaseSpec(epochs=1), SHRUNK),
    training=TrainingSpec(refit=False, rollback=False),
    cache=CacheSpec(precision="float32"),
)


def train(tmp_path, changes=None, **arguments):
    return fit_small(override(SPEC, changes or {}), tmp_path, Listener(), **arguments)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("k", [1, 3])
def test_the_penalty_and_its_gradient_are_those_of_the_singular_values(shape, k):
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    left, values, right = np.linalg.svd(features, full_matrices=False)
    given = tf.constant(features)
    with tf.GradientTape() as tape:
        tape.watch(given)
        found = smallest_squares(given, k)
    assert float(found) == pytest.approx(np.sum(values[-k:] ** 2), rel=1e-3)
    expected = 2 * (left[:, -k:] * values[-k:]) @ right[-k:]
    np.testing.assert_allclose(tape.gradient(found, given), expected, rtol=1e-2, atol=1e-3)


def test_equal_examples_have_a_finite_gradient():
    given = tf.constant(np.ones((4, 3), np.float32))
    with tf.GradientTape() as tape:
        tape.watch(given)
        found = smallest_squares(given, 2)
    assert float(found) == pytest.approx(0, abs=1e-5)
    assert np.isfinite(tape.gradient(found, given)).all()


def test_the_loss_of_training_has_the_penalty_of_features_before_dropout():
    classifier = make_classifier("small", dropout=0.3)
    stages = classifier.stages
    context = PhaseContext(SPEC, classifier.task, False, SilentReporter(), None, stages)
    images = np.random.default_rng(0).uniform(0, 255, (6, 32, 32, 3)).astype(np.float32)
    encoded = classifier.task.encode(np.arange(6))
    losses = []
    for strength in (1e-9, 0.5):
        model = (
            BSS(BSSOptions(strength=strength, k=2)).prepare(context, SHRUNK, classifier.model).model
        )
        model.compile(loss=classifier.task.loss(TrainingSpec()))
        logits = model(images, training=False)
        np.testing.assert_allclose(logits, classifier.model(images, training=False), rtol=1e-5)
        losses.append(
            [
                float(model.compute_loss(images, encoded, logits, None, is_training))
                for is_training in (True, False)
            ]
        )
    pooled = classifier.model.get_layer("pooling").output
    below = keras.Model(classifier.model.input, pooled)
    expected = 0.5 * np.sum(np.linalg.svd(below(images), compute_uv=False)[-2:] ** 2)
    assert losses[1][0] - losses[0][0] == pytest.approx(expected, rel=1e-2)
    assert losses[1][1] == losses[0][1]
    assert [v.path for v in model.trainable_variables] == [
        v.path for v in classifier.model.trainable_variables
    ]


def test_training_shrinks_the_smallest_singular_values(tmp_path):
    """Of batches of training images, compared with a penalty of nearly 0."""
    images = make_source(views=SPEC.views).examples.pixels[make_splits().train]
    sums = []
    for strength in (1e-9, 1.0):
        changes = {"phases.1.method_options": {"strength": strength, "k": 4}, "phases.1.epochs": 6}
        classifier, _ = train(tmp_path, changes)
        pooled = classifier.model.get_layer("pooling").output
        features = np.array(keras.Model(classifier.model.input, pooled)(np.float32(images)))
        sums.append(sum(float(smallest_squares(batch, 4)) for batch in np.split(features, 3)))
    assert sums[1] < 0.9 * sums[0]


def test_a_resumed_phase_has_the_same_bits(tmp_path):
    expected = weights_by_stage(train(tmp_path)[0])
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    train(tmp_path, run=run, num_epochs=2)
    for stage, values in weights_by_stage(train(tmp_path, run=run)[0]).items():
        for one, other in zip(values, expected[stage], strict=True):
            np.testing.assert_array_equal(one, other)


def test_phases_that_penalise_nothing_are_refused(tmp_path):
    with pytest.raises(SpecError, match="trains no features"):
        train(tmp_path, {"phases.1.unfreeze": "head"})
    with pytest.raises(SpecError, match="fewer singular values"):
        train(tmp_path, {"phases.1.method_options.k": 33})
