"""The figures of compared networks, as they are in a table, in JSON and in the plots."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_transfer.evaluation.intervals import Interval
from keras_transfer.experiments.speed import BATCH_SIZES, Speed
from keras_transfer.reporting.numbers import fixed, percent
from keras_transfer.tasks.task import Monitor


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is known of one network on the same test images and machine as all others.

    `score` is the task's metric with its 95 % interval, `agreement` the share of images with the
    same decision as the network that all are compared with, and `num_bytes` the size of its files.
    """

    name: str
    score: float
    interval: Interval
    agreement: float
    num_parameters: int
    num_bytes: int
    speed: Speed

    @property
    def latency_ms(self) -> float:
        """The median time of one image."""
        return self.speed.p50[BATCH_SIZES[0]]

    @property
    def megabytes(self) -> float:
        """The size of its files."""
        return self.num_bytes / 1e6

    def cells(self, monitor: Monitor, more: Sequence[str]) -> list[str]:
        """Its row below `header_of`, with the cells of further columns."""
        speeds = [f"{self.speed.p50[size]:.1f}\n{self.speed.p95[size]:.1f}" for size in BATCH_SIZES]
        return [
            self.name,
            monitor.format_interval(self.score, self.interval),
            percent(self.agreement),
            fixed(self.megabytes, 2),
            *speeds,
            *more,
            f"{self.num_parameters:,}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return dataclasses.asdict(self)


def header_of(monitor: Monitor, more: Sequence[str]) -> list[str]:
    """The header of a table of networks.

    Times are the median and the 95th percentile for a batch of so many images.
    """
    times = [f"ms for {size}" for size in BATCH_SIZES]
    return ["", monitor.label, "agrees, %", "MB", *times, *more, "parameters"]
