"""Laps of a race: what one contestant did with one seed, and what many laps say together."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import mean, median, stdev
from typing import Any

from scipy.stats import t as student_t

PLAIN, OURS = "plain", "ours"
SETUP, READING, EXTRACTION, TEST = "setup", "reading images", "extraction", "test"
STAGES = (SETUP, READING, EXTRACTION, TEST)
"""Stages that are no phases."""
TOTAL = "total"


@dataclass(frozen=True)
class Lap:
    """One contestant's work with one seed.

    `stages` are wall seconds in the order of the work, imports left out; `accuracy` is the share
    of the test split named right at the end; `peak_mb` is `child.peak_mb`. Who stores decoded
    images and features says how many 10^6 bytes (`stored_mb`) and how many views a second went
    through the frozen layers (`extraction_rate`).
    """

    name: str
    seed: int
    stages: dict[str, float]
    accuracy: float
    peak_mb: float
    stored_mb: float | None = None
    extraction_rate: float | None = None

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return sum(self.stages.values())


@dataclass(frozen=True)
class Limits:
    """What this machine does at most, images a second: neither can any extraction outrun."""

    decode_rate: float
    forward_rate: float

    @property
    def slower(self) -> float:
        """The limit that binds."""
        return min(self.decode_rate, self.forward_rate)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, None where there is only one seed."""

    mean: float
    interval: tuple[float, float] | None
    num_seeds: int


class Stopwatch:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the block's seconds to the stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - started


def compare(laps: Sequence[Lap], limits: Limits) -> dict[str, Any]:
    """The content of race.json.

    `rows`: one a lap and stage, with the lap's own accuracy and peak memory. `ratio`: the plain
    recipe's median seconds over ours, for every stage that both have and in total.
    `accuracy_difference`: ours minus plain, paired by seed; no interval from a single seed.
    `limits`: images or views a second.
    """
    plain, ours = of(laps, PLAIN), of(laps, OURS)
    by_seed = {lap.seed: lap.accuracy for lap in plain}
    extraction = median_of([lap.extraction_rate for lap in ours])
    return {
        "rows": [
            {
                "name": lap.name,
                "seed": lap.seed,
                "stage": stage,
                "seconds": seconds,
                "accuracy": lap.accuracy,
                "peak_mb": lap.peak_mb,
            }
            for lap in laps
            for stage, seconds in lap.stages.items()
        ],
        "ratio": {
            **{
                stage: stage_seconds(plain, stage) / stage_seconds(ours, stage)
                for stage in plain[0].stages
                if stage in ours[0].stages
            },
            TOTAL: total_seconds(plain) / total_seconds(ours),
        },
        "accuracy_difference": asdict(estimate([lap.accuracy - by_seed[lap.seed] for lap in ours])),
        "limits": {
            "decode_and_resize_per_second": limits.decode_rate,
            "forward_per_second": limits.forward_rate,
            "extraction_per_second": extraction,
            "share_of_slower": None if extraction is None else extraction / limits.slower,
        },
    }


def of(laps: Sequence[Lap], name: str) -> list[Lap]:
    """The laps of one contestant."""
    return [lap for lap in laps if lap.name == name]


def stage_seconds(laps: Sequence[Lap], stage: str) -> float:
    """Median over laps; 0 for a stage they do not have."""
    return median(lap.stages.get(stage, 0.0) for lap in laps)


def total_seconds(laps: Sequence[Lap]) -> float:
    """Median over laps of all their stages together."""
    return median(lap.seconds for lap in laps)


def median_of(values: Sequence[float | None]) -> float | None:
    """Median of the values that are known, None if none is."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of one value a seed, with Student's interval."""
    centre, number = mean(values), len(values)
    if number == 1:
        return Estimate(centre, None, 1)
    half = float(student_t.ppf(0.975, number - 1)) * stdev(values) / number**0.5
    return Estimate(centre, (centre - half, centre + half), number)
