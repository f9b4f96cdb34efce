"""Moving averages of the weights, in place of the weights after each epoch.

Keras's optimizers keep the averages, and show them only after the last epoch. Here they are in the
model whenever it is evaluated or saved, so that validation, the choice of the best epoch, its
weights and checkpoints are all those of the averages. Training goes on with the weights themselves,
which lie meanwhile where the averages were.
"""

from collections.abc import Iterator

import keras
import numpy as np

from keras_transfer.devices.strategy import scope


class Averages(keras.callbacks.Callback):
    """Swaps weights and averages at the ends of epochs; comes before callbacks that read weights.

    A resumed phase begins with the state of the end of an epoch, as every later epoch does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_swapped = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Go on with the weights."""
        if epoch > 0:
            self._swap()
        self._is_swapped = False

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Validate the averages."""
        self._show()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Without validation images they are not in place yet."""
        self._show()

    def _show(self) -> None:
        if not self._is_swapped:
            self._swap()
        self._is_swapped = True

    def _swap(self) -> None:
        # On JAX, asking for the model brings the values of this epoch into its variables.
        assert self.model
        with scope():
            for variable, average in pairs(self.model.optimizer):
                value, mean = np.array(variable), np.array(average)
                variable.assign(mean)
                average.assign(value)


def pairs(
    optimizer: keras.optimizers.Optimizer,
) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """The variables that an optimizer trains, with their averages."""
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        for one in optimizer.optimizers:
            if one.built:
                yield from pairs(one)
    else:
        averages = optimizer._model_variables_moving_average
        yield from zip(optimizer._trainable_variables, averages, strict=True)
