"""Profiling: traces of a few training steps for TensorBoard."""

from pathlib import Path
from typing import Any, Final

import keras

FIRST_STEP: Final = 2
"""The first step traced in an epoch, from 0: earlier ones compile and fill caches."""

NUM_STEPS: Final = 8


class Profiler(keras.callbacks.Callback):
    """Traces `NUM_STEPS` steps of the first epoch, or as many as that epoch has.

    The trace goes to `folder`/plugins/profile, where TensorBoard's profile plugin looks for it.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder
        self._is_running = self._is_done = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Start before `FIRST_STEP`, or before the last step of a shorter epoch."""
        first = min(FIRST_STEP, self.params["steps"] - 1)
        if batch == first and not self._is_done and not self._is_running:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._start()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Stop after the last step to trace."""
        if batch + 1 >= FIRST_STEP + NUM_STEPS:
            self._stop()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Stop at the end of an epoch with fewer steps."""
        self._stop()

    def _start(self) -> None:
        self._is_running = True
        if keras.backend.backend() == "jax":
            import jax

            jax.profiler.start_trace(self._folder)
        else:
            import tensorflow as tf

            tf.profiler.experimental.start(str(self._folder))

    def _stop(self) -> None:
        if not self._is_running:
            return
        self._is_running, self._is_done = False, True
        if keras.backend.backend() == "jax":
            import jax

            jax.profiler.stop_trace()
        else:
            import tensorflow as tf

            tf.profiler.experimental.stop()
