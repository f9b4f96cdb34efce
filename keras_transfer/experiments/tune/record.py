"""A finished search for hyper-parameters as plain data: its trials, its axes and what was best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COMPLETED, FAILED = "completed", "failed"
LINEAR, LOG, CHOICE = "linear", "log", "choice"


@dataclass(frozen=True)
class SearchTrial:
    """One trial of a search: what was tried, what came of it, when and where it ran.

    `values` maps dotted fields of the spec to a float, int, str or bool. `score` is the value of
    the objective, None for a failed trial, whose `cause` says why. `epochs` counts all epochs
    trained, `share` is what part of a whole training was asked for (Hyperband asks for less than 1
    of most trials); `started` is in seconds since 1970; `resident_mb` is what the process then held
    in memory, 10^6 bytes.
    """

    name: str
    values: dict[str, Any]
    status: str
    score: float | None
    val_accuracy: float | None
    val_loss: float | None
    epochs: int
    seconds: float
    started: float
    worker: str
    cause: str = ""
    share: float = 1.0
    resident_mb: float = 0.0

    @property
    def ended(self) -> float:
        """Seconds since 1970."""
        return self.started + self.seconds

    @property
    def result(self) -> float:
        """The score; NaN if there is none that trials can be compared by."""
        if self.status != COMPLETED or self.score is None or not math.isfinite(self.score):
            return math.nan
        return self.score

    @property
    def is_scored(self) -> bool:
        """Whether it can be compared with others: completed, with a finite score."""
        return not math.isnan(self.result)


@dataclass(frozen=True)
class Search:
    """All trials of a search and what they were drawn from.

    Args:
        trials: at least one of them is scored.
        scales: "linear", "log" or "choice" of every parameter, in the order of the axes.
        choices: the values to choose from, of every parameter whose scale is "choice".
        objective: name of the score, "val_accuracy" or "val_loss".
        winner: name of the trial that won.
    """

    trials: Sequence[SearchTrial]
    scales: Mapping[str, str]
    choices: Mapping[str, Sequence[Any]]
    objective: str
    higher_is_better: bool
    winner: str

    @property
    def scored(self) -> list[SearchTrial]:
        """Trials with a score, the best first."""
        return ranked(self.trials, higher_is_better=self.higher_is_better)

    @property
    def unscored(self) -> list[SearchTrial]:
        """Trials that failed, or whose score is no finite number."""
        return [trial for trial in self.trials if not trial.is_scored]


def ranked(trials: Sequence[SearchTrial], *, higher_is_better: bool) -> list[SearchTrial]:
    """Trials with a score, the best first; equal ones by their log loss, then the earlier first."""
    sign = -1 if higher_is_better else 1
    scored = [trial for trial in trials if trial.is_scored]
    return sorted(
        scored,
        key=lambda t: (sign * t.result, t.val_loss or 0.0, t.started, t.name),
    )


def best_so_far(
    trials: Sequence[SearchTrial], *, higher_is_better: bool
) -> list[tuple[float, float]]:
    """When each scored trial ended, in seconds since 1970, and the best score by then, in order."""
    better = max if higher_is_better else min
    curve: list[tuple[float, float]] = []
    for trial in sorted(trials, key=lambda trial: (trial.ended, trial.name)):
        if trial.is_scored:
            best = better(curve[-1][1], trial.result) if curve else trial.result
            curve.append((trial.ended, best))
    return curve
