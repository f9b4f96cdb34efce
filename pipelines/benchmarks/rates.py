"""Rates of frozen layers on this machine: in Keras, folded, and folded in half precision."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import keras
import numpy as np

from keras_transfer.devices.timing import take_turns
from keras_transfer.features.phase_inputs import find_head_cut
from keras_transfer.features.prefix import Prefix, half_precision
from keras_transfer.models.classifier import build_classifier
from keras_transfer.specs import ModelSpec
from keras_transfer.tasks.single_label import SingleLabel

NUM_ROUNDS = 5


@dataclass(frozen=True)
class Rates:
    """Images per second, medians over rounds.

    `keras` runs the layers as they are, `folded` with BatchNormalization multiplied into
    convolutions and weights as constants, `half` the same in half precision.
    """

    keras: float
    folded: float
    half: float


def measure_rates(backbone: str, *, image_size: int, batch_size: int) -> Rates:
    """Measure a backbone with random weights, which are as fast as any others.

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
    cut = find_head_cut(classifier)
    shape = (batch_size, image_size, image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    model = keras.Model(cut.model.input, cut.tensor)
    calls: list[Callable[[], Any]] = [functools.partial(model.predict_on_batch, pixels)]
    for precision in ("float32", half_precision()):
        prefix = Prefix([cut], precision=precision)
        calls.append(functools.partial(prefix, pixels, batch_size=batch_size))
    rounds = take_turns(calls, fewest=1 + NUM_ROUNDS)
    return Rates(*(batch_size / median(seconds) for seconds in rounds))
