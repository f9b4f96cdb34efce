"""Latencies of frozen layers on this machine."""

import functools
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from keras_transfer.devices.timing import take_turns
from keras_transfer.features.prefix import Prefix
from keras_transfer.models.cuts import Cut


def latencies_ms(cuts: Sequence[Cut], precisions: Sequence[str]) -> list[float]:
    """Milliseconds that one image takes to the cuts of several classifiers, medians.

    As when features are computed, each in its precision.
    """
    calls: list[Callable[[], Any]] = []
    for cut, precision in zip(cuts, precisions, strict=True):
        shape = (1, *cut.model.input_shape[1:])
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        calls.append(functools.partial(Prefix([cut], precision=precision), pixels, 1))
    return [1000 * median(seconds) for seconds in take_turns(calls)]
