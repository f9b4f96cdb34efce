"""Attacks by projected gradients: pixels changed within bounds so that a network answers worse.

Source: A. Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
"""

from collections.abc import Callable
from typing import Any

from keras import ops


def projected_gradients(
    gradient: Callable[[Any], Any], images: Any, *, epsilon: float, step: float, steps: int
) -> Any:
    """Images [B, S, S, C], each changed within its bounds to increase a loss.

    There is no random start, so the same pixels are attacked in a repeated or resumed computation.

    Args:
        gradient: that of the loss by images, in the shape of these.
        images: grey levels from 0 to 255.
        epsilon: largest change of a pixel, grey levels.
        step: change of a pixel in each of `steps`, grey levels.
    """
    # Batches may be uint8, which has no gradient.
    images = ops.cast(images, "float32")
    low, high = ops.maximum(images - epsilon, 0.0), ops.minimum(images + epsilon, 255.0)
    changed = images
    for _ in range(steps):
        changed = ops.clip(changed + step * ops.sign(gradient(changed)), low, high)
    return changed
