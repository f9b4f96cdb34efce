"""Latency: how fast the frozen layers of backbones run on this machine.

Calls that are compared take turns, batch by batch, so that a slow moment of the machine affects
all of them.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import keras
import numpy as np

from keras_transfer.features.phase_inputs import find_cuts
from keras_transfer.features.prefix import Prefix, half_precision
from keras_transfer.models.classifier import HEAD, build_classifier
from keras_transfer.models.cuts import Cut
from keras_transfer.specs import ModelSpec, PhaseSpec
from keras_transfer.tasks.single_label import SingleLabel

_NUM_ROUNDS = 5
_MOST_ROUNDS, _ENOUGH_SECONDS = 15, 0.1


@dataclass(frozen=True)
class Rates:
    """Images a second, medians over rounds.

    `keras` runs the layers as they are, `folded` with BatchNormalization multiplied into
    convolutions and weights as constants, `half` the same in half precision.
    """

    keras: float
    folded: float
    half: float


def rate(backbone: str, *, image_size: int, batch_size: int) -> Rates:
    """Measure a backbone with random weights, which take as long as any others.

    Raises:
        SpecError: an unknown backbone, or images too small for it.
    """
    keras.utils.clear_session()
    classifier = build_classifier(
        ModelSpec(backbone=backbone, weights="none"),
        image_size=image_size,
        task=SingleLabel(("a", "b")),
        seed=0,
    )
    (cut,) = find_cuts(classifier, [PhaseSpec(unfreeze=HEAD)], 0).values()
    shape = (batch_size, image_size, image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    ways: list[Callable[[np.ndarray], Any]] = [
        keras.Model(cut.model.input, cut.tensor).predict_on_batch
    ]
    for precision in ("float32", half_precision()):
        prefix = Prefix([cut], precision=precision)
        ways.append(functools.partial(prefix, batch_size=batch_size))
    # The first call also traces and copies weights.
    calls = [functools.partial(way, pixels) for way in ways]
    rounds = [[_seconds(call) for call in calls] for _ in range(1 + _NUM_ROUNDS)][1:]
    return Rates(*(batch_size / median(seconds) for seconds in zip(*rounds, strict=True)))


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
    """Seconds of calls, round after round, until each has run for long enough, `fewest` times at
    least.

    The first call, which also compiles, does not count unless it is the only one.
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
