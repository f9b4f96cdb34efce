"""The time budget of `auto`. Only the standard library is needed, so that it starts at once."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from keras_transfer.errors import SpecError
from keras_transfer.fields import parse_duration

MINIMUM_SECONDS: Final = 60.0
"""Shortest budget: the export and its proof alone take about half of it."""


@dataclass(frozen=True)
class Budget:
    """A number of seconds that began at `started`, a reading of `clock`."""

    seconds: float
    started: float
    clock: Callable[[], float]

    @classmethod
    def start(cls, text: str, *, clock: Callable[[], float] = time.perf_counter) -> "Budget":
        """A budget such as '10m' that begins now.

        Raises:
            SpecError: it is no duration, or shorter than `MINIMUM_SECONDS`.
        """
        started, seconds = clock(), parse_duration(text, "time_budget")
        if not MINIMUM_SECONDS <= seconds < math.inf:
            raise SpecError(
                "time_budget is too short for a model with its export",
                expected=f"{MINIMUM_SECONDS:.0f}s or more",
                received=repr(text),
                fix=f"write time_budget={MINIMUM_SECONDS:.0f}s, or call `train` for one training",
            )
        return cls(seconds, started, clock)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    @property
    def left(self) -> float:
        """Seconds until the end, negative after it."""
        return self.seconds - self.spent
