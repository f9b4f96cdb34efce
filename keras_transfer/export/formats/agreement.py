"""How well an artefact agrees with the model it was made of, and where it is refused.

Artefacts timed in turns: what slows one down slows all.

Quiet machine assumed: nothing else should compute meanwhile. Turns keep a disturbance from hitting
one artefact alone, but they cannot take it out of the figures.
"""

import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from keras_transfer.evaluation.intervals import Interval, wilson
from keras_transfer.export.formats.isolated import Asked
from keras_transfer.export.saved_model.proof import TOLERANCES
from keras_transfer.reporting.reporter import Reporter

LEAST_AGREEMENT: Final = 0.9
"""A quantised artefact is refused where this share of equal labels is out of reach (95 %)."""

_ROUNDING: Final = {"float32": TOLERANCES["float32"], "float16": TOLERANCES["bfloat16"]}
"""Largest accepted |Δ probability| of formats that are not quantised.

Measured at 224 px: 1.3e-6 (ResNet50) and 5.2e-6 (MobileNet 0.25) in float32, where oneDNN, XNNPACK,
MLAS and OpenVINO sum in different orders; 2e-4 and 2.5e-2 with weights in float16, which has more
digits than bfloat16 and so need not do better than that.
"""

_SUM_TOLERANCE: Final = 0.02
"""How far quantised probabilities may sum to something else than 1: they are multiples of 1/256."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """An artefact beside the model on the same N test images; shares are 0-1.

    `refusal` is the reason not to use it, '' where there is none.
    """

    num_images: int
    label_agreement: float
    max_abs_difference: float
    accuracy: float
    accuracy_interval: Interval
    refusal: str = ""


def agree(
    answers: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    precision: str,
    trained_in: str = "float32",
) -> Agreement:
    """Compare an artefact's probabilities [N, C] with the model's, and both with the truth [N].

    'float32' and 'float16' are refused where a probability differs by more than rounding does, or a
    label that is no tie. 'dynamic' and 'int8' have no such bound: they are refused where their
    accuracy falls below the 95 % interval of the model's, or where it is certain (95 %) that
    more than one label in ten changes.

    Args:
        precision: of the format.
        trained_in: dtype policy of the model, which moves its own probabilities.
    """
    if answers.shape != probabilities.shape or not np.isfinite(answers).all():
        # Nothing below can be computed.
        return _nothing(len(labels), f"answers {answers.shape} with values that are no numbers")
    tops = probabilities.argmax(axis=1)
    chosen = answers.argmax(axis=1)
    difference = float(np.abs(answers - probabilities).max())
    num_right, num_agreeing = int((chosen == labels).sum()), int((chosen == tops).sum())
    interval = wilson(num_right, len(labels))
    if precision in _ROUNDING:
        tolerance = max(_ROUNDING[precision], TOLERANCES[trained_in])
        rows = np.arange(len(labels))
        # A tie, which rounding decides, cannot be a disagreement.
        is_same = probabilities.max(axis=1) - probabilities[rows, chosen] <= 2 * tolerance
        num_agreeing = int(is_same.sum())
        refusal = _refuse_rounding(difference, tolerance, len(labels) - num_agreeing)
    else:
        num_right_before = int((tops == labels).sum())
        refusal = _refuse_quantised(num_right, num_right_before, num_agreeing, len(labels))
        off = float(np.abs(answers.sum(axis=1) - 1).max())
        if off > _SUM_TOLERANCE:
            refusal = refusal or f"its probabilities sum to something {off:.2g} away from 1"
    return Agreement(
        num_images=len(labels),
        label_agreement=num_agreeing / len(labels),
        max_abs_difference=difference,
        accuracy=num_right / len(labels),
        accuracy_interval=interval,
        refusal=refusal,
    )


def _refuse_rounding(difference: float, tolerance: float, num_other: int) -> str:
    if difference > tolerance:
        return f"probabilities differ by {difference:.1e}, more than {tolerance:.0e}"
    return f"{num_other} labels differ that are no ties" if num_other else ""


def _refuse_quantised(
    num_right: int, num_right_before: int, num_agreeing: int, num_images: int
) -> str:
    low, high = wilson(num_right_before, num_images)
    if num_right / num_images < low:
        return (
            f"accuracy falls from {num_right_before / num_images:.1%} "
            f"({low:.1%} to {high:.1%}) to {num_right / num_images:.1%}, out of its interval"
        )
    reach = wilson(num_agreeing, num_images)[1]
    if reach < LEAST_AGREEMENT:
        return (
            f"{num_agreeing / num_images:.1%} of the labels agree, surely less than "
            f"{LEAST_AGREEMENT:.0%}"
        )
    return ""


def _nothing(num_images: int, refusal: str) -> Agreement:
    return Agreement(
        num_images=num_images,
        label_agreement=0.0,
        max_abs_difference=float("inf"),
        accuracy=0.0,
        accuracy_interval=(0.0, 1.0),
        refusal=refusal,
    )


BATCH_SIZES: Final = (1, 8, 32)
_CALLS: Final = {1: 5, 8: 2, 32: 1}
"""Calls of one artefact in a round."""

_LEAST_ROUNDS, _MOST_ROUNDS = 4, 12
_ENOUGH_SECONDS: Final = 60.0
"""Of all artefacts together, for each batch size."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one call: median, 95th percentile and least of `num_calls`."""

    p50: float
    p95: float
    least: float
    num_calls: int


def num_processors() -> int:
    """How many processors this process may use: as many threads each artefact gets."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def time_in_turns(
    asked: Mapping[str, Asked], *, reporter: Reporter
) -> dict[str, dict[int, Latency]]:
    """Latencies by name and batch size; each artefact is asked alone, the others wait."""
    latencies: dict[str, dict[int, Latency]] = {name: {} for name in asked}
    for batch_size in BATCH_SIZES:
        seconds: dict[str, list[float]] = {name: [] for name in asked}
        started = time.perf_counter()
        with reporter.progress(f"timing batches of {batch_size}") as count:
            for number in range(_MOST_ROUNDS):
                is_late = time.perf_counter() - started > _ENOUGH_SECONDS
                if number >= _LEAST_ROUNDS and is_late:
                    break
                for name, one in asked.items():
                    seconds[name] += one.seconds(batch_size, _CALLS[batch_size])
                count(number + 1, _MOST_ROUNDS)
        for name, taken in seconds.items():
            latencies[name][batch_size] = _latency(taken)
    return latencies


def _latency(seconds: list[float]) -> Latency:
    milliseconds = sorted(1000 * value for value in seconds)
    return Latency(
        p50=statistics.median(milliseconds),
        p95=statistics.quantiles(milliseconds, n=20, method="inclusive")[-1],
        least=milliseconds[0],
        num_calls=len(milliseconds),
    )
