"""Artefacts timed in turns: what slows one down slows all.

Quiet machine assumed: nothing else should compute meanwhile. Turns keep a disturbance from hitting
one artefact alone, but they cannot take it out of the figures.
"""

import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from keras_transfer.delivery.formats.asked_alone import Asked
from keras_transfer.terminal import Narrator

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
    asked: Mapping[str, Asked], *, narrator: Narrator
) -> dict[str, dict[int, Latency]]:
    """Latencies by name and batch size; each artefact is asked alone, the others wait."""
    latencies: dict[str, dict[int, Latency]] = {name: {} for name in asked}
    for batch_size in BATCH_SIZES:
        seconds: dict[str, list[float]] = {name: [] for name in asked}
        started = time.perf_counter()
        with narrator.counting(f"timing batches of {batch_size}") as count:
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
