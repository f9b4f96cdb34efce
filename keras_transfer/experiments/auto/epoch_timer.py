"""The seconds of a further epoch of a training, predicted from the steps of its last one."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import keras

from keras_transfer.reporting.reporter import PrefixedReporter


class EpochTimer(keras.callbacks.Callback):
    """Times the steps of the last epoch, without those in which Keras builds a graph.

    The first step of training and that of validation may take as long as all others together.
    """

    def __init__(self) -> None:
        super().__init__()
        self._train: list[float] = []
        self._validation: list[float] = []

    @property
    def seconds(self) -> float:
        """Predicted seconds of an epoch with its validation; 0 before the first one ends."""
        return sum(_predict(times) for times in (self._train, self._validation))

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Start anew."""
        self._train, self._validation = [time.perf_counter()], []

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Note the end of a step."""
        self._train.append(time.perf_counter())

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Note where validation begins."""
        self._validation = [time.perf_counter()]

    def on_test_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Note the end of a batch of validation."""
        self._validation.append(time.perf_counter())


@dataclass(frozen=True)
class TimingReporter(PrefixedReporter):
    """Lets `timer` see the epochs."""

    timer: EpochTimer

    @contextlib.contextmanager
    def training_progress(
        self, title: str, epochs: int, steps_per_epoch: int
    ) -> Iterator[list[keras.callbacks.Callback]]:
        """As the other reporter's, and the timer."""
        with super().training_progress(title, epochs, steps_per_epoch) as callbacks:
            yield [*callbacks, self.timer]


def _predict(times: list[float]) -> float:
    """Seconds of all steps, by the start and all ends: as long as those after the first, if any."""
    num_steps = len(times) - 1
    if num_steps < 2:
        return times[-1] - times[0] if times else 0.0
    return (times[-1] - times[1]) * num_steps / (num_steps - 1)
