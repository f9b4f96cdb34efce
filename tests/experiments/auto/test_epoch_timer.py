"""The predicted seconds of an epoch do not contain those in which Keras builds a graph."""

import pytest

from keras_transfer.experiments.auto import epoch_timer
from keras_transfer.experiments.auto.epoch_timer import EpochTimer, TimingReporter
from keras_transfer.reporting.reporter import SilentReporter


@pytest.fixture
def timer(monkeypatch):
    monkeypatch.setattr(epoch_timer.time, "perf_counter", lambda: clock["now"])
    clock = {"now": 0.0}
    timer = EpochTimer()

    def epoch(train: list[float], validation: list[float]) -> None:
        timer.on_epoch_begin(0)
        for number, seconds in enumerate(train):
            clock["now"] += seconds
            timer.on_train_batch_end(number)
        timer.on_test_begin()
        for number, seconds in enumerate(validation):
            clock["now"] += seconds
            timer.on_test_batch_end(number)
        clock["now"] += 5  # Checkpoints.

    timer.epoch = epoch
    return timer


def test_first_steps_count_as_the_others_do(timer):
    assert timer.seconds == 0
    timer.epoch([30.0, 2.0, 2.0, 2.0], [10.0, 0.5])
    assert timer.seconds == pytest.approx(4 * 2.0 + 2 * 0.5)


def test_a_single_step_counts_whole(timer):
    timer.epoch([30.0], [10.0])
    assert timer.seconds == pytest.approx(40.0)


def test_only_the_last_epoch_counts(timer):
    timer.epoch([30.0, 2.0], [1.0])
    timer.epoch([3.0, 3.0, 3.0], [])
    assert timer.seconds == pytest.approx(9.0)


def test_a_reporter_lets_the_timer_see_the_epochs():
    timer = EpochTimer()
    reporter = TimingReporter(SilentReporter(), "a trial", timer)
    with reporter.training_progress("fine-tune", 3, 10) as callbacks:
        assert callbacks == [timer]
