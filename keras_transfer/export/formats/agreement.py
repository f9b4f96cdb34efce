"""Compares an artefact with its model: agreement, reason for a refusal, and latency."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from keras_transfer.evaluation.intervals import Interval, wilson
from keras_transfer.evaluation.results import Headline
from keras_transfer.export.saved_model.proof import TOLERANCES
from keras_transfer.export.verification import IsolatedArtefact, Timing, time_in_turns
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.tasks.task import Monitor, Task

LEAST_AGREEMENT: Final = 0.9
"""A quantised artefact is refused if the upper end (95 %) of its share of equal decisions is lower.
"""

_ROUNDING: Final = {"float32": TOLERANCES["float32"], "float16": TOLERANCES["bfloat16"]}
"""Largest accepted |Δ output| of formats that are not quantised.

Measured at 224 px: 1.3e-6 (ResNet50) and 5.2e-6 (MobileNet 0.25) in float32, where oneDNN, XNNPACK,
MLAS and OpenVINO sum in different orders; 2e-4 and 2.5e-2 with weights in float16, which is more
precise than bfloat16, so the limit of bfloat16 also applies to it.
"""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """An artefact compared with the model on the same N test images; shares are 0-1.

    `metric` is the task's monitored metric, `score` its value and `is_share` whether that is a
    share. `max_abs_difference` is in units of the task's `output_scale`. `refusal` is the reason
    why the artefact is refused, '' if it is accepted.
    """

    num_images: int
    label_agreement: float
    max_abs_difference: float
    metric: str
    is_share: bool
    score: float
    score_interval: Interval
    refusal: str = ""


def agree(
    outputs: np.ndarray,
    expected: np.ndarray,
    values: np.ndarray,
    *,
    task: Task,
    precision: str,
    trained_in: str = "float32",
) -> Agreement:
    """Compare an artefact's outputs float32 [N, K] with the model's, given the true values.

    'float32' and 'float16' are refused if an output differs by more than rounding does, or if a
    decision differs that is not a tie. 'dynamic', 'int8' and 'mixed' are refused if their score is
    worse than the 95 % interval of the model's score, or if more than one decision in ten changes
    with 95 % confidence.

    Args:
        task: the task of the outputs.
        precision: the precision of the format.
        trained_in: dtype policy of the model; its rounding changes the model's own outputs.
    """
    if outputs.shape != expected.shape or not np.isfinite(outputs).all():
        # The figures below cannot be computed.
        refusal = f"outputs {outputs.shape} contain NaN or Inf, or have the wrong shape"
        return _nothing(len(values), task.monitor, refusal)
    difference = float((np.abs(outputs - expected) / task.output_scale).max())
    score, before = (task.headline(values, each) for each in (outputs, expected))
    if precision in _ROUNDING:
        tolerance = max(_ROUNDING[precision], TOLERANCES[trained_in])
        # A tie is decided by rounding, so it is not counted as a disagreement.
        num_agreeing = int(task.agrees(outputs, expected, margin=2 * tolerance).sum())
        refusal = _refuse_rounding(difference, tolerance, len(values) - num_agreeing)
    else:
        num_agreeing = int(task.agrees(outputs, expected, margin=0).sum())
        refusal = (
            _refuse_score(task.monitor, score.value, before)
            or _refuse_decisions(num_agreeing, len(values))
            or task.inconsistency(outputs)
        )
    return Agreement(
        num_images=len(values),
        label_agreement=num_agreeing / len(values),
        max_abs_difference=difference,
        metric=task.monitor.metric,
        is_share=task.monitor.is_share,
        score=score.value,
        score_interval=score.interval,
        refusal=refusal,
    )


def _refuse_rounding(difference: float, tolerance: float, num_other: int) -> str:
    if difference > tolerance:
        return f"outputs differ by {difference:.1e}, more than {tolerance:.0e}"
    return f"{num_other} labels differ (ties not counted)" if num_other else ""


def _refuse_score(monitor: Monitor, score: float, before: Headline) -> str:
    worst = min(before.interval, key=monitor.rank)
    if monitor.rank(score) >= monitor.rank(worst):
        return ""
    low, high, was, now = map(monitor.format, (*before.interval, before.value, score))
    falls = "falls" if monitor.mode == "max" else "rises"
    name = monitor.metric.replace("_", " ")
    return f"{name} {falls} from {was} ({low} to {high}) to {now}, outside its interval"


def _refuse_decisions(num_agreeing: int, num_images: int) -> str:
    if wilson(num_agreeing, num_images)[1] >= LEAST_AGREEMENT:
        return ""
    return (
        f"{num_agreeing / num_images:.1%} of the labels agree, with 95 % certainty less than "
        f"{LEAST_AGREEMENT:.0%}"
    )


def _nothing(num_images: int, monitor: Monitor, refusal: str) -> Agreement:
    return Agreement(
        num_images=num_images,
        label_agreement=0.0,
        max_abs_difference=float("inf"),
        metric=monitor.metric,
        is_share=monitor.is_share,
        score=0.0,
        score_interval=(0.0, 1.0),
        refusal=refusal,
    )


_TIMING: Final = Timing(calls={1: 5, 8: 2, 32: 1}, least_rounds=4, most_rounds=12, seconds=60.0)
BATCH_SIZES: Final = tuple(_TIMING.calls)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one call: median, 95th percentile and minimum of `num_calls`."""

    p50: float
    p95: float
    least: float
    num_calls: int


def measure_latencies(
    artefacts: Mapping[str, IsolatedArtefact], *, reporter: Reporter
) -> dict[str, dict[int, Latency]]:
    """Latencies by name and batch size, measured in turns; see `verification.time_in_turns`."""
    seconds = time_in_turns(artefacts, _TIMING, reporter=reporter)
    return {
        name: {size: _latency(values) for size, values in by_size.items()}
        for name, by_size in seconds.items()
    }


def _latency(seconds: list[float]) -> Latency:
    milliseconds = sorted(1000 * value for value in seconds)
    return Latency(
        p50=statistics.median(milliseconds),
        p95=statistics.quantiles(milliseconds, n=20, method="inclusive")[-1],
        least=milliseconds[0],
        num_calls=len(milliseconds),
    )
