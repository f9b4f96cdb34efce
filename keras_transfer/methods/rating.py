"""Rates: how fast a backbone's frozen layers run on this machine, as Keras has them and as ours.

All ways take turns, batch by batch, so that a slow moment of the machine hits them alike.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import keras
import numpy as np

from keras_transfer.features.prefix import Prefix, half_precision
from keras_transfer.models.classifier import HEAD, build_classifier
from keras_transfer.planning import find_cuts
from keras_transfer.specs import ModelSpec, PhaseSpec

_NUM_ROUNDS = 5


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
    """Measure a backbone of random weights, which take as long as any others.

    Raises:
        SpecError: an unknown backbone, or pictures too small for it.
    """
    keras.utils.clear_session()
    classifier = build_classifier(
        ModelSpec(backbone=backbone, weights="none"),
        image_size=image_size,
        class_names=("a", "b"),
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
    # The first call traces and lays out weights.
    rounds = [[_seconds(way, pixels) for way in ways] for _ in range(1 + _NUM_ROUNDS)][1:]
    return Rates(*(batch_size / median(seconds) for seconds in zip(*rounds, strict=True)))


def _seconds(way: Callable[[np.ndarray], Any], pixels: np.ndarray) -> float:
    started = time.perf_counter()
    way(pixels)
    return time.perf_counter() - started
