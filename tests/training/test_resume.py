"""A phase that is stopped and taken up again ends where an undisturbed one does, bit by bit."""

import keras
import numpy as np
import pytest
from small_models import make_classifier, weights_by_stage

from keras_transfer.specs import PhaseSpec, RunSpec, TrainingSpec, ViewSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.training.phases import train_phase
from keras_transfer.training.progress import Checkpoint, State

TINY = "small"
"""With BatchNormalization, and fast to build and to train."""

SPEC = RunSpec(views=ViewSpec(policy="strong"), training=TrainingSpec(batch_size=40))


class _StopAt(keras.callbacks.Callback):
    def __init__(self, epoch: int, batch: int):
        super().__init__()
        self.epoch, self.batch, self.now = epoch, batch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.batch):
            raise KeyboardInterrupt


@pytest.mark.parametrize(("backbone", "decay"), [(TINY, 1.0), (TINY, 0.5)])
def test_stopped_phase_ends_bit_identical_when_taken_up(backbone, decay, split_data, tmp_path):
    phase = PhaseSpec(epochs=4, unfreeze="stage2", learning_rate=1e-3, layer_decay=decay)
    data = split_data(SPEC)
    whole = make_classifier(backbone)
    expected = train_phase(whole, phase, data)

    saver = Checkpoint(RunFolder.create(tmp_path / "run"), "phase-0", print)
    with pytest.raises(KeyboardInterrupt):
        train_phase(make_classifier(backbone), phase, data, saver=saver, callbacks=[_StopAt(2, 1)])
    resumed = make_classifier(backbone)
    result = train_phase(resumed, phase, data, saver=saver)

    assert result.best_epoch == expected.best_epoch
    for ours, theirs in zip(result.history, expected.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    before, after = weights_by_stage(whole), weights_by_stage(resumed)
    for stage, values in before.items():
        for one, other in zip(values, after[stage], strict=True):
            np.testing.assert_array_equal(one, other)


def test_finished_phase_is_not_trained_again(split_data, tmp_path):
    phase = PhaseSpec(epochs=2)
    saver = Checkpoint(RunFolder.create(tmp_path / "run"), "phase-0", print)
    first = train_phase(make_classifier(TINY), phase, split_data(SPEC), saver=saver)
    again = train_phase(
        make_classifier(TINY), phase, split_data(SPEC), saver=saver, callbacks=[_StopAt(0, 0)]
    )
    assert again.history == first.history


def shorten(path):
    path.write_bytes(path.read_bytes()[:-40])


def empty(path):
    path.write_bytes(b"")


def flip_data(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def overwrite(path):
    path.write_text("<html>")


def keep_first_bytes(path):
    path.write_bytes(path.read_bytes()[:100])


DAMAGES = [shorten, empty, flip_data, overwrite, keep_first_bytes]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_gives_way_to_the_last_whole_one(damage, tmp_path):
    heard: list[str] = []
    checkpoint = Checkpoint(RunFolder.create(tmp_path / "run"), "phase-0", heard.append)
    for epoch in (1, 2):
        weights = {"kernel": np.full((40, 40), epoch)}
        checkpoint.save(State({"history": [{}] * epoch}, {"weights": weights}))
    damage(checkpoint.path)
    loaded = checkpoint.load()
    assert loaded is not None
    assert loaded.arrays["weights"]["kernel"][0, 0] == 1
    assert "damaged" in heard[0]
    assert heard[1] == "The last whole checkpoint is epoch 1 of phase-0."
    damage(checkpoint.previous)
    assert checkpoint.load() is None
    assert "starts again" in heard[-1]
    assert not checkpoint.path.exists()


def test_phase_with_a_damaged_checkpoint_ends_bit_identical(split_data, tmp_path):
    phase, data = PhaseSpec(epochs=3, learning_rate=1e-3), split_data(SPEC)
    whole = make_classifier(TINY)
    expected = train_phase(whole, phase, data)
    saver = Checkpoint(RunFolder.create(tmp_path / "run"), "phase-0", print)
    with pytest.raises(KeyboardInterrupt):
        train_phase(make_classifier(TINY), phase, data, saver=saver, callbacks=[_StopAt(2, 1)])
    shorten(saver.path)
    result = train_phase(make_classifier(TINY), phase, data, saver=saver)
    assert [row["loss"] for row in result.history] == [row["loss"] for row in expected.history]


def test_checkpoint_brings_back_what_was_saved(tmp_path):
    checkpoint = Checkpoint(RunFolder.create(tmp_path / "run"), "phase-1", print)
    assert checkpoint.load() is None
    state = State({"epoch": 3}, {"weights": {"a/kernel": np.eye(2)}, "best": {"b": np.ones(3)}})
    checkpoint.save(state)
    loaded = checkpoint.load()
    assert loaded is not None
    assert loaded.numbers == {"epoch": 3}
    np.testing.assert_array_equal(loaded.arrays["weights"]["a/kernel"], np.eye(2))
    np.testing.assert_array_equal(loaded.arrays["best"]["b"], np.ones(3))
    checkpoint.discard()
    assert checkpoint.load() is None
