"""The two domains of an adaptation as features, and the head between features and classes."""

from dataclasses import dataclass

import numpy as np

from keras_transfer.models.activations import activate
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead, solve_softmax


@dataclass(frozen=True, eq=False)
class Domains:
    """Features of labelled source images and of unlabelled target images, float64.

    `source` is [N, D] with class indices `labels` [N] and weights of the loss `weights` [N],
    `target` is [M, D]. Logits are `features @ kernel + bias`, with `kernel` [D, K].
    """

    source: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    target: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.bias)

    def outputs(self, features: np.ndarray) -> np.ndarray:
        """Probabilities [B, K]."""
        return activate(features @ self.kernel + self.bias, "softmax")

    def solved(self, features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> LinearHead:
        """The optimal head on labelled features.

        Raises:
            DataError: a feature is not finite.
        """
        read = HeadFeatures(lambda rows, _: features[rows], len(features), 1, features.shape[1])
        return solve_softmax(read, np.eye(self.num_classes)[labels], weights)
