"""Batches in parts, and what becomes of a phase when memory runs out."""

import dataclasses

import keras
import numpy as np
import pytest
from small_models import make_classifier, weights_by_stage

from keras_transfer.devices.strategy import Devices, largest_part
from keras_transfer.errors import OutOfMemoryError, SpecError
from keras_transfer.models.classifier import Classifier
from keras_transfer.specs import PhaseSpec, RunSpec, TrainingSpec, ViewSpec
from keras_transfer.training.phases import PhaseResult, train_phase
from keras_transfer.training.progress import State

SPEC = RunSpec(views=ViewSpec(count=2), training=TrainingSpec(batch_size=32))
PHASE = PhaseSpec(name="tail", epochs=3, unfreeze="stage2", learning_rate=1e-4, warmup_epochs=1)
IN_STAGES = dataclasses.replace(PHASE, optimizer="sgd", layer_decay=0.5)


class FullMemory(keras.callbacks.Callback):
    """Says that memory is full in a step of an epoch, as long as batches are too large."""

    def __init__(self, epoch: int, step: int, *, most_parts: int):
        super().__init__()
        self.at, self.most_parts, self.times = (epoch, step), most_parts, 0
        self._epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        if isinstance(optimizer, keras.optimizers.MultiOptimizer):
            optimizer = optimizer.optimizers[-1]
        num_parts = optimizer.gradient_accumulation_steps or 1
        if (self._epoch, batch) >= self.at and num_parts < self.most_parts:
            self.times += 1
            raise MemoryError("no room")


class Kept:
    """Keeps a state in memory."""

    state: State | None = None

    def save(self, state: State) -> None:
        self.state = state

    def load(self) -> State | None:
        return self.state


def train(data, phase: PhaseSpec, **settings) -> tuple[Classifier, PhaseResult]:
    keras.utils.clear_session()
    # Dropout draws other numbers for parts than for a whole batch.
    classifier = make_classifier("small", dropout=0.0)
    return classifier, train_phase(classifier, phase, data, **settings)


def assert_close(one: Classifier, other: Classifier, *, tolerance: float = 2e-5) -> None:
    others = weights_by_stage(other)
    for stage, weights in weights_by_stage(one).items():
        for mine, theirs in zip(weights, others[stage], strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=0, atol=tolerance * np.abs(mine).max())


@pytest.fixture(scope="module")
def make_whole():
    """Trains a phase on whole batches, with each optimizer once."""
    trained = {}

    def make(data, phase: PhaseSpec) -> tuple[Classifier, PhaseResult]:
        if phase.optimizer not in trained:
            trained[phase.optimizer] = train(data, phase)
        return trained[phase.optimizer]

    return make


@pytest.mark.parametrize(
    "phase", [IN_STAGES, dataclasses.replace(PHASE, optimizer="adamw")], ids=["sgd", "adamw"]
)
def test_a_batch_in_parts_trains_as_the_whole_batch_does(split_data, make_whole, phase):
    data = split_data(SPEC)
    whole, expected = make_whole(data, phase)
    parts, result = train(data, phase, num_parts=4)
    # Adam divides by the size of gradients, so that rounding errors of tiny ones show.
    assert_close(whole, parts, tolerance=2e-5 if phase is IN_STAGES else 1e-3)
    for row, expected_row in zip(result.history, expected.history, strict=True):
        for name in ("loss", "val_loss", "learning_rate"):
            assert row[name] == pytest.approx(expected_row[name], rel=1e-3)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_phase_goes_on_with_smaller_parts_where_memory_runs_out(split_data, make_whole, epoch):
    phase, data = IN_STAGES, split_data(SPEC)
    whole, expected = make_whole(data, phase)
    said: list[str] = []
    full = FullMemory(epoch, 1, most_parts=4)
    saver = Kept()
    result_of, result = train(data, phase, callbacks=[full], say=said.append, saver=saver)
    assert_close(whole, result_of)
    assert full.times == len(said) == 2
    assert f"after its epoch {epoch} with 8" in said[1]
    assert "a step still has 32 images" in said[1]
    assert [row["loss"] for row in result.history] == pytest.approx(
        [row["loss"] for row in expected.history], rel=1e-4
    )
    assert saver.state.numbers["num_parts"] == 4


def test_an_interrupted_phase_goes_on_in_the_parts_it_had(split_data, make_whole):
    phase, data = IN_STAGES, split_data(SPEC)
    whole, _ = make_whole(data, phase)
    saver = Kept()
    train(data, phase, callbacks=[FullMemory(0, 0, most_parts=2)], saver=saver, num_epochs=2)
    resumed, result = train(data, phase, saver=saver)
    assert saver.state.numbers["num_parts"] == 2
    assert result.epochs == 3
    assert_close(whole, resumed)


def test_memory_that_is_too_small_for_one_image_is_an_error_with_a_way_out(split_data):
    few = dataclasses.replace(SPEC, training=TrainingSpec(batch_size=4))
    with pytest.raises(OutOfMemoryError, match="on 1 images at once") as caught:
        train(split_data(few), PHASE, callbacks=[FullMemory(0, 0, most_parts=8)])
    assert "data.image_size" in str(caught.value)


def test_other_errors_end_a_phase_at_once(split_data):
    class Broken(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        train(split_data(SPEC), PHASE, callbacks=[Broken()])


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "limit", "expected"),
    [
        (32, 1, 16, 16),
        (30, 1, 15, 15),
        (30, 1, 14, 10),
        (7, 1, 3, 1),
        (32, 4, 3, 0),
        (24, 4, 11, 8),
    ],
)
def test_parts_are_divisors_that_devices_can_share(batch_size, num_devices, limit, expected):
    assert largest_part(batch_size, num_devices, limit) == expected


def test_batch_sizes_that_cannot_be_shared_or_cut_are_refused_with_one_that_can():
    devices = Devices("jax", "tpu", 8, "data_parallel", "mixed_bfloat16")
    devices.check_batch_size(32)
    devices.check_batch_size(32, 16)
    with pytest.raises(SpecError, match=r"batch_size=32 or 40"):
        devices.check_batch_size(36)
    with pytest.raises(SpecError, match=r"devices.batch_size=8"):
        devices.check_batch_size(32, 12)
    mirrored = Devices("tensorflow", "gpu", 2, "mirrored", "float32")
    with pytest.raises(SpecError, match="cannot compute a batch in parts"):
        mirrored.check_batch_size(32, 16)
