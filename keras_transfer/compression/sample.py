"""What compression knows of the data: training images, and the head's weights of the features."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Sample:
    """Scaled images float32 [N, S, S, C], as the trunk takes them, and weights of its features.

    `feature_weights` float32 [C] is the sum over the outputs of the squares of the head's weights
    for each channel of the feature map; ones for a head that is not linear.
    """

    images: np.ndarray
    feature_weights: np.ndarray
