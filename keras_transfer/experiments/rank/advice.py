"""Advice: the sentences that a ranking comes down to, and the figures they rest on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_transfer.evaluation.intervals import Interval, bootstrap
from keras_transfer.experiments.rank.ranking import RankedCandidate, Ranking
from keras_transfer.experiments.rank.scoring import METRICS


@dataclass(frozen=True)
class Advice:
    """`recommended` is None where no candidate keeps the limits; `sentence` says so.

    `behind` has, by name, how far each candidate's probe is behind the first one's that keeps the
    limits: the difference of accuracies on the same images and its 95 % interval.
    """

    recommended: str | None
    sentence: str
    warnings: tuple[str, ...]
    behind: dict[str, tuple[float, Interval]]


def advise(ranking: Ranking) -> Advice:
    """Recommend one candidate under the limits, and tell which metrics not to trust here.

    It is the fastest of those that cannot be told from the best: whose difference, resampled
    image by image, has an interval that reaches zero.
    """
    within = [entry for entry in ranking.entries if keeps_limits(entry, ranking)]
    warnings = tuple(_warnings(ranking))
    if not within:
        return Advice(None, _nobody(ranking), warnings, {})
    best = within[0]
    behind = _compare(best, ranking.entries, seed=ranking.spec.seed)
    level = [entry for entry in within if entry is best or behind[entry.name][1][0] <= 0]
    chosen = min(level, key=lambda entry: entry.latency_ms)
    sentence = _recommend(chosen, best, level, behind)
    first = ranking.entries[0]
    if first is not best:
        difference, (low, high) = behind[first.name]
        sentence += (
            f" Without the limits {first.name} would lead by {_points(-difference)} points "
            f"({_points(-high)} to {_points(-low)})."
        )
    return Advice(chosen.name, sentence, warnings, behind)


def keeps_limits(entry: RankedCandidate, ranking: Ranking) -> bool:
    """Whether a candidate is fast and small enough; without limits every one is."""
    limits = ranking.ranking
    fast = limits.max_latency_ms is None or entry.latency_ms <= limits.max_latency_ms
    return fast and (limits.max_size_mb is None or entry.size_mb <= limits.max_size_mb)


def _compare(
    best: RankedCandidate, entries: Sequence[RankedCandidate], *, seed: int
) -> dict[str, tuple[float, Interval]]:
    hits = best.hits["probe"].astype(np.float64)
    table = np.stack([hits - entry.hits["probe"] for entry in entries], axis=1)
    lows, highs = bootstrap(lambda counts: counts @ table / len(table), len(table), seed=seed)
    return {
        entry.name: (float(difference), (float(low), float(high)))
        for entry, difference, low, high in zip(
            entries, table.mean(axis=0), lows, highs, strict=True
        )
        if entry is not best
    }


def _recommend(
    chosen: RankedCandidate,
    best: RankedCandidate,
    level: Sequence[RankedCandidate],
    behind: dict[str, tuple[float, Interval]],
) -> str:
    text = f"Take {chosen.name}: {_describe(chosen)}"
    if chosen is not best:
        difference, (low, high) = behind[chosen.name]
        return (
            f"{text}; {best.name} ({_describe(best)}) is ahead by {_points(difference)} points "
            f"({_points(low)} to {_points(high)}), which is within noise, and slower."
        )
    if len(level) == 1:
        return f"{text}; it is ahead of all others by more than noise."
    others = ", ".join(entry.name for entry in level if entry is not best)
    return f"{text}; {others} cannot be told from it, but {_are(len(level) - 1)} not faster."


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _describe(entry: RankedCandidate) -> str:
    return (
        f"{100 * entry.scores['probe'].value:.1f} % by a linear probe, "
        f"{three_digits(entry.latency_ms)} ms an image, {three_digits(entry.size_mb)} MB"
    )


def _nobody(ranking: Ranking) -> str:
    limits = ranking.ranking
    asked = [
        f"{name}={value:g}"
        for name, value in (
            ("max_latency_ms", limits.max_latency_ms),
            ("max_size_mb", limits.max_size_mb),
        )
        if value is not None
    ]
    fastest = min(ranking.entries, key=lambda entry: entry.latency_ms)
    smallest = min(ranking.entries, key=lambda entry: entry.num_parameters)
    first = ranking.entries[0]
    return (
        f"No candidate keeps {' and '.join(asked)}: the fastest is {fastest.name} with "
        f"{three_digits(fastest.latency_ms)} ms, the smallest {smallest.name} with "
        f"{three_digits(smallest.size_mb)} MB. Without limits {first.name} would be first "
        f"({_describe(first)})."
    )


def _warnings(ranking: Ranking) -> list[str]:
    told = [
        f"{name} knows no more about these classes than noise does." for name in ranking.worthless
    ]
    return told + [
        f"{METRICS[metric]} is unreliable here: it puts features that know nothing level with "
        f"{', '.join(names)} or above."
        for metric, names in ranking.unreliable.items()
    ]


def three_digits(value: float) -> str:
    """A positive number as it is read: 0.0389, 5.27, 604, 1,204."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _points(share: float) -> str:
    """A difference in points, with a real minus sign and no negative zero."""
    text = f"{100 * share:.1f}"
    return "0.0" if text in ("-0.0", "0.0") else text.replace("-", "−")
