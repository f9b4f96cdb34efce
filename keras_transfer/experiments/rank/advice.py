"""Advice of a ranking: the recommended candidate, warnings, and their figures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_transfer.evaluation.intervals import Interval, bootstrap
from keras_transfer.experiments.rank.ranking import RankedCandidate, Ranking
from keras_transfer.experiments.rank.scoring import METRICS
from keras_transfer.reporting.numbers import percent, three_digits


@dataclass(frozen=True)
class Advice:
    """The recommendation, in one sentence, and warnings.

    Args:
        recommended: None where no candidate is within the limits.
        behind: by name, how much lower each candidate's probe accuracy is than that of the best
            one within the limits, on the same images, with its 95 % interval.
    """

    recommended: str | None
    sentence: str
    warnings: tuple[str, ...]
    behind: dict[str, tuple[float, Interval]]


def advise(ranking: Ranking) -> Advice:
    """Recommend one candidate within the limits, and warn of metrics that are unreliable here.

    It is the fastest of those that are not significantly worse than the best: the 95 % bootstrap
    interval of the difference, over images, includes zero.
    """
    within = [entry for entry in ranking.entries if keeps_limits(entry, ranking)]
    warnings = tuple(_warnings(ranking))
    if not within:
        return Advice(None, _describe_limits(ranking), warnings, {})
    best = within[0]
    behind = _compare(best, ranking.entries, seed=ranking.spec.seed)
    level = [entry for entry in within if entry is best or behind[entry.name][1][0] <= 0]
    chosen = min(level, key=lambda entry: entry.latency_ms)
    sentence = _recommend(chosen, best, level, behind)
    first = ranking.entries[0]
    if first is not best:
        difference, (low, high) = behind[first.name]
        sentence += (
            f" Without the limits {first.name} would lead by {percent(-difference)} points "
            f"({percent(-high)} to {percent(-low)})."
        )
    return Advice(chosen.name, sentence, warnings, behind)


def keeps_limits(entry: RankedCandidate, ranking: Ranking) -> bool:
    """Whether a candidate is fast and small enough; without limits all are."""
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
            f"{text}; {best.name} ({_describe(best)}) is ahead by {percent(difference)} points "
            f"({percent(low)} to {percent(high)}), which is within noise, and slower."
        )
    if len(level) == 1:
        return f"{text}; it is ahead of all others by more than noise."
    others = ", ".join(entry.name for entry in level if entry is not best)
    verb = "is" if len(level) == 2 else "are"
    return f"{text}; {others} {verb} not significantly worse, but {verb} not faster."


def _describe(entry: RankedCandidate) -> str:
    return (
        f"{100 * entry.scores['probe'].value:.1f} % by a linear probe, "
        f"{three_digits(entry.latency_ms)} ms per image, {three_digits(entry.size_mb)} MB"
    )


def _describe_limits(ranking: Ranking) -> str:
    limits = ranking.ranking
    exceeded = [
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
        f"No candidate is within {' and '.join(exceeded)}: the fastest is {fastest.name} with "
        f"{three_digits(fastest.latency_ms)} ms, the smallest {smallest.name} with "
        f"{three_digits(smallest.size_mb)} MB. Without limits {first.name} would be first "
        f"({_describe(first)})."
    )


def _warnings(ranking: Ranking) -> list[str]:
    warnings = [f"{name} is no better for these classes than noise." for name in ranking.worthless]
    return warnings + [
        f"{METRICS[metric]} is unreliable here: it scores noise as high as "
        f"{', '.join(names)} or higher."
        for metric, names in ranking.unreliable.items()
    ]
