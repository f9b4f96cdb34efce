"""L2-SP: closed forms of the penalty and its minimum, what it spares, and whole phases."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fitting_small import fit_small
from listener import Listener
from small_models import make_classifier, weights_by_stage

from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.methods.l2_sp import L2SP, L2SPOptions, PenalisedModel, Penalty
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.training.objective import PhaseContext
from keras_transfer.training.phases import apply_phase

HELD = PhaseSpec(
    name="held",
    epochs=3,
    unfreeze="stage2",
    learning_rate=1e-2,
    optimizer="sgd",
    method="l2_sp",
    method_options={"strength": 0.1},
)
SPEC = RunSpec(
    phases=(PhaseSpec(epochs=1), HELD),
    training=TrainingSpec(refit=False, rollback=False),
    cache=CacheSpec(precision="float32"),
)


def prepare(classifier, **options):
    """The model of a phase that trains stage2 and the head."""
    stages = classifier.stages
    context = PhaseContext(SPEC, classifier.task, False, SilentReporter(), None, stages)
    objective = L2SP(L2SPOptions(**options)).prepare(context, HELD, classifier.model)
    apply_phase(classifier, HELD)
    return objective.model


def train(tmp_path, changes=None, **arguments):
    return fit_small(override(SPEC, changes or {}), tmp_path, Listener(), **arguments)


def assert_same(one, other):
    for stage, values in one.items():
        for own, others in zip(values, other[stage], strict=True):
            np.testing.assert_array_equal(own, others)


def test_the_penalty_and_its_gradient_are_those_of_the_formula():
    classifier = make_classifier("small")
    model = prepare(classifier, strength=0.3, head_strength=0.05)
    trained = model.trainable_variables
    kernel = classifier.last_dense.kernel
    own = 0.05 / 2 * np.sum(np.square(np.array(kernel)))
    assert float(model.penalty(trained)) == pytest.approx(own, rel=1e-5)
    moves = {}
    for number, variable in enumerate(classifier.model.variables):
        if "int" not in variable.dtype:  # Frozen weights, and those of the head, move as well.
            moves[variable.path] = (number + 1) / 10
            variable.assign_add(np.full(variable.shape, moves[variable.path], np.float32))
    stage = [v for layer in classifier.stages["stage2"] for v in layer.trainable_variables]
    assert [v.path for v in stage] == ["small2_conv/kernel", "small2_conv/bias"]
    expected = sum(0.3 / 2 * np.prod(v.shape) * moves[v.path] ** 2 for v in stage)
    expected += 0.05 / 2 * np.sum(np.square(np.array(kernel)))
    with tf.GradientTape() as tape:
        value = model.penalty(trained)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    found = tape.gradient(value, [v.value for v in trained])
    for variable, gradient in zip(trained, found, strict=True):
        if variable.path in {v.path for v in stage}:
            np.testing.assert_allclose(gradient, 0.3 * moves[variable.path], rtol=1e-4)
        elif variable is kernel:
            np.testing.assert_allclose(gradient, 0.05 * np.array(kernel), rtol=1e-5)
        else:
            assert gradient is None  # The head's bias has no penalty.


def test_training_ends_at_the_closed_form_between_start_and_optimum():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(64, 3)).astype(np.float32)
    targets = inputs @ np.float32([[1.0], [-2.0], [3.0]])
    start, strength = np.float32([[0.5], [0.5], [0.5]]), 1.5
    layer = keras.layers.Dense(1, use_bias=False)
    image = keras.Input((3,))
    model = PenalisedModel(image, layer(image))
    layer.kernel.assign(start)
    anchors = {id(layer.kernel): tf.constant(start)}
    model.penalty = Penalty(L2SPOptions(strength=strength, head_strength=0), anchors, frozenset())
    model.compile(loss="mse", optimizer=keras.optimizers.SGD(0.2))
    model.fit(inputs, targets, batch_size=64, epochs=60, verbose=0)
    hessian = 2 / 64 * inputs.T @ inputs
    pulled = 2 / 64 * inputs.T @ targets + strength * start
    expected = np.linalg.solve(hessian + strength * np.eye(3), pulled)
    np.testing.assert_allclose(np.array(layer.kernel), expected, rtol=1e-4)
    # Validation reads the plain loss.
    loss = np.mean(np.square(inputs @ np.array(layer.kernel) - targets))
    assert model.evaluate(inputs, targets, verbose=0) == pytest.approx(loss, rel=1e-4)


def test_weight_decay_does_not_pull_as_well(tmp_path):
    weights = [
        weights_by_stage(
            train(tmp_path, {"phases.1.optimizer": "adamw", "phases.1.weight_decay": decay})[0]
        )
        for decay in (0.0, 0.5)
    ]
    assert_same(*weights)


def test_a_strong_penalty_holds_the_trunk_and_spares_the_head(tmp_path):
    start = weights_by_stage(make_classifier("small", seed=SPEC.seed))
    distances, heads = {}, {}
    for strength in (0.0, 50.0):
        found = weights_by_stage(
            train(tmp_path, {"phases.1.method_options": {"strength": strength}})[0]
        )
        distances[strength] = np.abs(found["stage2"][0] - start["stage2"][0]).max()
        heads[strength] = np.abs(found["head"][0] - start["head"][0]).max()
    assert distances[50.0] < distances[0.0] / 4
    assert heads[50.0] > heads[0.0] / 2


@pytest.mark.parametrize("num_epochs", [2, 3])
def test_a_resumed_phase_is_held_by_the_same_weights(num_epochs, tmp_path):
    expected = weights_by_stage(train(tmp_path)[0])
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    train(tmp_path, run=run, num_epochs=num_epochs)
    assert_same(expected, weights_by_stage(train(tmp_path, run=run)[0]))


def test_penalties_of_nothing_are_refused():
    with pytest.raises(SpecError, match="would penalise nothing"):
        L2SPOptions(strength=0, head_strength=0)
