"""EMA: the averages of the formula are what is validated, chosen, saved and left."""

import keras
import numpy as np
import pytest
from fitting_small import fit_small
from listener import Listener
from small_models import make_classifier, weights_by_stage

from keras_transfer.config import override
from keras_transfer.specs import CacheSpec, PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.training.averages import Averages, pairs

MEAN = PhaseSpec(
    name="mean",
    epochs=3,
    unfreeze="stage2",
    learning_rate=1e-2,
    layer_decay=0.5,
    method="ema",
    method_options={"epochs": 1.0},
)
SPEC = RunSpec(
    phases=(PhaseSpec(epochs=1), MEAN),
    training=TrainingSpec(refit=False, rollback=False),
    cache=CacheSpec(precision="float32"),
)


def train(tmp_path, changes=None, **arguments):
    return fit_small(override(SPEC, changes or {}), tmp_path, Listener(), **arguments)


class Steps(keras.callbacks.Callback):
    """The weight after each step, and what epochs end with."""

    def __init__(self, variable):
        super().__init__()
        self.variable, self.values, self.ends, self.validated = variable, [], [], []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(np.array(self.variable))

    def on_test_end(self, logs=None):
        self.validated.append(np.array(self.variable))

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(np.array(self.variable))


@pytest.mark.parametrize("is_divided", [False, True])
@pytest.mark.parametrize("validates", [False, True])
def test_epochs_end_with_the_average_and_training_goes_on_without_it(is_divided, validates):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(32, 3)).astype(np.float32)
    targets = inputs @ np.float32([[1.0], [-2.0], [3.0]])
    settings = {"use_ema": True, "ema_momentum": 0.8}
    results = []
    for average in (False, True):
        layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        image = keras.Input((3,))
        model = keras.Model(image, layer(image))
        optimizer = keras.optimizers.SGD(0.1, **settings if average else {})
        if is_divided:
            by_path = keras.optimizers.OptimizerMap(optimizer, {layer.kernel.path: optimizer})
            optimizer = keras.optimizers.MultiOptimizer(by_path)
        model.compile(loss="mse", optimizer=optimizer)
        steps = Steps(layer.kernel)
        model.fit(
            inputs,
            targets,
            batch_size=8,
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=[Averages(), steps] if average else [steps],
            validation_data=(inputs, targets) if validates else None,
        )
        results.append(steps)
        if average:
            (pair,) = pairs(model.optimizer)
            assert pair[0] is layer.kernel
    plain, averaged = results
    np.testing.assert_allclose(averaged.values, plain.values, rtol=1e-5)
    mean, expected = plain.values[0], []
    for number, value in enumerate(plain.values):
        mean = 0.8 * mean + 0.2 * value
        if (number + 1) % 4 == 0:
            expected.append(mean)
    np.testing.assert_allclose(averaged.ends, expected, rtol=1e-5)
    np.testing.assert_allclose(averaged.validated, expected if validates else [], rtol=1e-5)


def test_a_long_average_moves_less_than_the_weights(tmp_path):
    start = weights_by_stage(make_classifier("small", seed=SPEC.seed))
    moves = []
    for changes in (
        {"phases.1.method": "supervised", "phases.1.method_options": {}},
        {"phases.1.method_options": {"epochs": 0.01}},
        {"phases.1.method_options": {"epochs": 100.0}},
    ):
        last = {"phases.1.epochs": 1, **changes}
        found = weights_by_stage(train(tmp_path, last)[0])
        moves.append(np.abs(found["stage2"][0] - start["stage2"][0]).max())
    assert moves[1] == pytest.approx(moves[0], rel=1e-4)
    assert moves[2] < 0.6 * moves[0]


@pytest.mark.parametrize("num_epochs", [2, 3])
def test_a_resumed_phase_has_the_same_bits(num_epochs, tmp_path):
    expected = weights_by_stage(train(tmp_path)[0])
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    train(tmp_path, run=run, num_epochs=num_epochs)
    for stage, values in weights_by_stage(train(tmp_path, run=run)[0]).items():
        for one, other in zip(values, expected[stage], strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_validation_loss_of_an_epoch_is_that_of_the_weights_that_are_kept(tmp_path):
    plain = {"training.label_smoothing": 0.0, "phases.1.epochs": 1}
    _, (_, outcome) = train(tmp_path, plain)
    assert outcome.history[0]["val_loss"] == pytest.approx(outcome.val_loss, rel=1e-4)
