"""Timings of a race, one for each recipe and seed, and their comparison."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import mean, median, stdev
from typing import Any

from scipy.stats import t as student_t

PLAIN, OURS = "plain", "ours"
SETUP, READING, EXTRACTION = "setup", "reading images", "extraction"
REFIT, TEST = "refit", "test"
STAGES = (SETUP, READING, EXTRACTION, REFIT, TEST)
"""Stages besides the phases."""
TOTAL = "total"


@dataclass(frozen=True)
class Timing:
    """Seconds, accuracy and memory of one recipe with one seed.

    Args:
        stages: wall seconds in the order of the work, without imports.
        accuracy: on the test split at the end, 0 to 1.
        peak_mb: peak memory of the process, 10^6 bytes.
        stored_mb: decoded images and features that were cached, 10^6 bytes; None without a cache.
        extraction_rate: views per second through the frozen layers; None where none was extracted.
        reached: seconds since the start and test accuracy, after each phase and at the end.
    """

    name: str
    seed: int
    stages: dict[str, float]
    accuracy: float
    peak_mb: float
    stored_mb: float | None = None
    extraction_rate: float | None = None
    reached: list[tuple[float, float]] = field(default_factory=list)

    def seconds_to(self, accuracy: float) -> float | None:
        """Seconds until the test accuracy was at least this; None if it never was."""
        return next((seconds for seconds, own in self.reached if own >= accuracy), None)

    @property
    def seconds(self) -> float:
        """Seconds of all stages together."""
        return sum(self.stages.values())


@dataclass(frozen=True)
class Limits:
    """Upper limits of any extraction on this machine, images per second."""

    decode_rate: float
    forward_rate: float

    @property
    def slower(self) -> float:
        """The lower of both limits."""
        return min(self.decode_rate, self.forward_rate)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, None where there is only one seed."""

    mean: float
    interval: tuple[float, float] | None
    num_seeds: int


@contextmanager
def timed(stages: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall seconds of the block to a stage."""
    started = time.perf_counter()
    yield
    stages[stage] = stages.get(stage, 0.0) + time.perf_counter() - started


def compare(timings: Sequence[Timing], limits: Limits) -> dict[str, Any]:
    """The content of race.json.

    `rows`: one for each timing and stage. `ratio`: the plain recipe's median seconds divided by
    this package's, for every stage that both have and in total.
    `accuracy_difference`: this package minus plain, paired by seed; no interval from one seed.
    `others`: for every other contestant the plain recipe's median seconds divided by its own, and
    its accuracy minus plain.
    `time_to_accuracy`: the median over seeds of the plain recipe's seconds divided by those in
    which this package reached the accuracy that the plain recipe has at its end; `num_reached` is
    the number of seeds in which it did. `limits`: images or views per second.
    """
    plain, ours = of(timings, PLAIN), of(timings, OURS)
    extraction = median_of([timing.extraction_rate for timing in ours])
    return {
        "rows": [
            {
                "name": timing.name,
                "seed": timing.seed,
                "stage": stage,
                "seconds": seconds,
                "accuracy": timing.accuracy,
                "peak_mb": timing.peak_mb,
            }
            for timing in timings
            for stage, seconds in timing.stages.items()
        ],
        "ratio": {
            **{
                stage: stage_seconds(plain, stage) / stage_seconds(ours, stage)
                for stage in plain[0].stages
                if stage in ours[0].stages
            },
            TOTAL: total_seconds(plain) / total_seconds(ours),
        },
        "accuracy_difference": _accuracy_difference(plain, ours),
        "others": {
            name: {
                "ratio": total_seconds(plain) / total_seconds(of(timings, name)),
                "accuracy_difference": _accuracy_difference(plain, of(timings, name)),
            }
            for name in names_of(timings)
            if name not in (PLAIN, OURS)
        },
        "time_to_accuracy": _time_to_accuracy(plain, ours),
        "limits": {
            "decode_and_resize_per_second": limits.decode_rate,
            "forward_per_second": limits.forward_rate,
            "extraction_per_second": extraction,
            "share_of_slower": None if extraction is None else extraction / limits.slower,
        },
    }


def _accuracy_difference(plain: Sequence[Timing], other: Sequence[Timing]) -> dict[str, Any]:
    by_seed = {timing.seed: timing.accuracy for timing in plain}
    return asdict(estimate([timing.accuracy - by_seed[timing.seed] for timing in other]))


def _time_to_accuracy(plain: Sequence[Timing], ours: Sequence[Timing]) -> dict[str, Any]:
    by_seed = {timing.seed: timing for timing in plain}
    ratios = [
        by_seed[timing.seed].seconds / seconds
        for timing in ours
        if (seconds := timing.seconds_to(by_seed[timing.seed].accuracy)) is not None
    ]
    ratio = median(ratios) if ratios else None
    return {"ratio": ratio, "num_reached": len(ratios), "num_seeds": len(ours)}


def names_of(timings: Sequence[Timing]) -> list[str]:
    """The contestants in the order of tables and figures: the plain recipe, others, this one."""
    names = dict.fromkeys(timing.name for timing in timings)
    return sorted(names, key=lambda name: (name != PLAIN, name == OURS))


def stages_of(timings: Sequence[Timing]) -> list[str]:
    """All stages that any contestant has, in the order of the work."""
    found = dict.fromkeys(stage for timing in timings for stage in timing.stages)
    phases = [stage for stage in found if stage not in STAGES]
    order = (SETUP, READING, EXTRACTION, *phases, REFIT, TEST)
    return [stage for stage in order if stage in found]


def of(timings: Sequence[Timing], name: str) -> list[Timing]:
    """The timings of one recipe."""
    return [timing for timing in timings if timing.name == name]


def stage_seconds(timings: Sequence[Timing], stage: str) -> float:
    """Median over timings; 0 for a stage they do not have."""
    return median(timing.stages.get(stage, 0.0) for timing in timings)


def total_seconds(timings: Sequence[Timing]) -> float:
    """Median over timings of all their stages together."""
    return median(timing.seconds for timing in timings)


def median_of(values: Sequence[float | None]) -> float | None:
    """Median of the values that are known, None if none is."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of one value for each seed, with Student's 95 % interval."""
    center, number = mean(values), len(values)
    if number == 1:
        return Estimate(center, None, 1)
    half = float(student_t.ppf(0.975, number - 1)) * stdev(values) / number**0.5
    return Estimate(center, (center - half, center + half), number)
