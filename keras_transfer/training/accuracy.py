"""Accuracy over examples, whatever they weigh."""

from typing import Any

import keras


class Accuracy(keras.metrics.CategoricalAccuracy):
    """The share of examples whose likeliest class is the true one.

    Weights only tell examples from the copies that fill a batch, which weigh nothing: a class that
    weighs twice as much in the loss counts once here.
    """

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """One-hot labels and logits [B, C], weights [B]."""
        if sample_weight is not None:
            sample_weight = keras.ops.cast(sample_weight > 0, self.dtype)
        return super().update_state(y_true, y_pred, sample_weight)
