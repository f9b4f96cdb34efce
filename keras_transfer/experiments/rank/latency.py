"""Latencies of frozen layers on this machine.

Compared calls alternate, so that a slow phase of the machine affects all of them.
"""

import functools
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from keras_transfer.features.prefix import Prefix
from keras_transfer.models.cuts import Cut

_MOST_ROUNDS, _ENOUGH_SECONDS = 15, 0.1


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


def take_turns(calls: Sequence[Callable[[], Any]], *, fewest: int = 4) -> list[list[float]]:
    """Seconds of each call, in rounds: at least `fewest` and, for fast calls, up to 16.

    The first round, which traces and allocates, is left out unless it is the only one.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(1 + _MOST_ROUNDS):
        for call, taken in zip(calls, seconds, strict=True):
            if len(taken) < fewest or sum(taken) < _ENOUGH_SECONDS:
                taken.append(_seconds(call))
    return [taken[1:] or taken for taken in seconds]


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
