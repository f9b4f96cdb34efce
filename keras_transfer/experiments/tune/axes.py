"""Axes of a search's figures: positions of values between 0 and 1, ticks and colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.ticker import MaxNLocator

from keras_transfer.experiments.tune.record import CHOICE, LINEAR, LOG, Search, SearchTrial
from keras_transfer.reporting.figures import shortened
from keras_transfer.reporting.numbers import short

SHADES = LinearSegmentedColormap.from_list(
    "scores", [(0.0, "#bac8d6"), (0.5, "#94b6db"), (0.8, "#3b6fb6"), (1.0, "#132849")]
)
"""Colours from the worst score to the best, ever darker; most contrast is near the best."""

_MARGIN = 0.04
"""Share of an axis left free at either end."""
_BAND = 0.5
"""Share of the space of a choice over which its trials are spread."""
_GOLDEN = 0.6180339887
_MOST_TICKS = 5
_MEDIANS_SHOWN = 3
"""Length of an axis of scores at most, in distances from the best to the median."""


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high` (their log10, if logarithmic), or of evenly spaced choices."""

    name: str
    scale: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()
    is_upwards: bool = True
    is_percent: bool = False

    def position(self, value: Any) -> float:
        """From 0 to 1, the better end of an axis of scores; NaN for a missing value."""
        if self.scale == CHOICE:
            known = value in self.choices
            return (self.choices.index(value) + 0.5) / len(self.choices) if known else math.nan
        if value is None or (self.scale == LOG and value <= 0):
            return math.nan
        if self.low == self.high:
            return 0.5
        number = math.log10(value) if self.scale == LOG else float(value)
        share = (number - self.low) / (self.high - self.low)
        position = _MARGIN + (1 - 2 * _MARGIN) * (share if self.is_upwards else 1 - share)
        return min(max(position, 0.0), 1.0)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Positions with their texts."""
        if self.scale == CHOICE:
            values: Sequence[Any] = self.choices
        elif self.low == self.high:
            values = [10**self.low if self.scale == LOG else self.low]
        else:
            values = self._decades() if self.scale == LOG else self._round_numbers()
        return [(self.position(value), self.text(value)) for value in values]

    def text(self, value: Any) -> str:
        """A value as the text of a tick."""
        if self.is_percent:
            return f"{100 * value:.4g} %"
        return short(value) if self.scale != CHOICE else shortened(short(value), 14)

    def _round_numbers(self) -> list[float]:
        low, high = (10**self.low, 10**self.high) if self.scale == LOG else (self.low, self.high)
        ticks = MaxNLocator(_MOST_TICKS - 1, steps=[1, 2, 5, 10]).tick_values(low, high)
        margin = 1e-9 * (high - low)
        return [float(tick) for tick in ticks if low - margin <= tick <= high + margin]

    def _decades(self) -> list[float]:
        """Powers of ten; where these are few, 2 and 5 between; else round numbers."""
        exponents = range(math.floor(self.low), math.ceil(self.high) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            values = [digit * 10.0**exponent for exponent in exponents for digit in digits]
            values = [value for value in values if self.low <= math.log10(value) <= self.high]
            if len(values) >= 3:
                return values[:: math.ceil(len(values) / _MOST_TICKS)]
        return self._round_numbers()


def axis_of(search: Search, name: str) -> Axis:
    """The axis of a parameter: its choices, or the range of the values tried."""
    scale = search.scales[name]
    if scale == CHOICE:
        return Axis(name, scale, choices=tuple(search.choices[name]))
    tried = [trial.values[name] for trial in search.trials if name in trial.values]
    if scale == LOG:
        tried = [math.log10(value) for value in tried if value > 0]
    return Axis(name, scale, float(min(tried, default=0)), float(max(tried, default=0)))


def score_axis(search: Search) -> Axis:
    """The axis of scores, the best at 1; logarithmic for losses that differ by more than ten times.

    Scores much worse than the median are at 0: otherwise a single failed training would hide the
    differences between all others.
    """
    scores = np.array([trial.result for trial in search.scored])
    is_wide = not search.higher_is_better and scores.min() > 0 and scores.max() > 10 * scores.min()
    numbers = np.log10(scores) if is_wide else scores
    best, middle, worst = float(numbers[0]), float(np.median(numbers)), float(numbers[-1])
    limit = best + _MEDIANS_SHOWN * (middle - best)
    if middle != best:
        worst = max(worst, limit) if search.higher_is_better else min(worst, limit)
    return Axis(
        search.names[search.objective],
        LOG if is_wide else LINEAR,
        min(best, worst),
        max(best, worst),
        is_upwards=search.higher_is_better,
        is_percent=search.is_share,
    )


def positions(axis: Axis, trials: Sequence[SearchTrial]) -> np.ndarray:
    """Positions of trials on a parameter's axis: float [N], NaN without a value.

    Trials with the same choice are spread a little, reproducibly, so that they do not overlap.
    """
    values = [axis.position(trial.values.get(axis.name)) for trial in trials]
    found = np.array(values, float)
    if axis.scale == CHOICE:
        for position in np.unique(found[~np.isnan(found)]):
            rows = np.flatnonzero(found == position)
            # Multiples of the golden ratio fill the band evenly, and show no order.
            steps = (0.5 + _GOLDEN * np.arange(len(rows))) % 1 - 0.5
            found[rows] += steps * _BAND / len(axis.choices)
    return found


def shade(axis: Axis, score: float) -> str:
    """The colour of a score."""
    return to_hex(SHADES(axis.position(score)))
