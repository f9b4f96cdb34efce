"""The record of a search: its trials as values, and as files that several processes write.

    trials/0007/spec.json      the spec that is trained, with the values of the trial
    trials/0007/begun.json     its values, worker, start time and number of the attempt
    trials/0007/progress.txt   its progress
    trials/0007/result.json    its result

Only the files are shared by processes, so everything that is shown is read from them.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from keras_transfer.config import spec_to_dict
from keras_transfer.errors import enumerated
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.task import Monitor

COMPLETED, FAILED = "completed", "failed"
LINEAR, LOG, CHOICE = "linear", "log", "choice"
_BEGUN, _RESULT, _PROGRESS = "begun.json", "result.json", "progress.txt"
TRIALS: Final = "trials"
_MOST_NAMED: Final = 5
"""Trials with the score of the best one that are named."""


@dataclass(frozen=True)
class SearchTrial:
    """One ended trial of a search: its values, its figures, when and where it ran.

    `values` maps dotted fields of the spec to a float, int, str or bool. `score` is the value of
    the objective, None for a failed trial, whose `cause` says why. `epochs` counts all epochs
    trained; `share` is the part of a whole training that was planned, which Hyperband sets below 1
    for most trials. `started` is in seconds since 1970. `resident_mb` is the memory of the process
    when the trial ended, 10^6 bytes. `same_as` is the trial that trained the same before, whose
    result this one has.
    """

    name: str
    values: dict[str, Any]
    status: str
    score: float | None
    val_score: float | None
    val_loss: float | None
    epochs: int
    seconds: float
    started: float
    worker: str
    cause: str = ""
    share: float = 1.0
    resident_mb: float = 0.0
    same_as: str = ""

    @property
    def ended(self) -> float:
        """Seconds since 1970."""
        return self.started + self.seconds

    @property
    def result(self) -> float:
        """The score; NaN if the trial failed or its score is not finite."""
        if self.status != COMPLETED or self.score is None or not math.isfinite(self.score):
            return math.nan
        return self.score

    @property
    def is_scored(self) -> bool:
        """Whether it completed with a finite score, so that it can be compared."""
        return not math.isnan(self.result)


@dataclass(frozen=True)
class Search:
    """All trials of a search and the space of their values.

    Args:
        trials: at least one of them is scored.
        scales: "linear", "log" or "choice" of every parameter, in the order of the axes.
        choices: the values to choose from, of every parameter whose scale is "choice".
        objective: "val_score" or "val_loss".
        monitor: the task's metric, of which "val_score" is the value.
        winner: name of the best trial.
    """

    trials: Sequence[SearchTrial]
    scales: Mapping[str, str]
    choices: Mapping[str, Sequence[Any]]
    objective: str
    monitor: Monitor
    winner: str

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher objective is better."""
        return higher_is_better(self.objective, self.monitor)

    @property
    def is_share(self) -> bool:
        """Whether the objective is a share of 1."""
        return self.objective == "val_score" and self.monitor.is_share

    @property
    def names(self) -> dict[str, str]:
        """Displayed names of `val_score` and `val_loss`, the objective first."""
        named = {"val_score": self.monitor.log_name, "val_loss": "val_loss"}
        return {key: named[key] for key in sorted(named, key=lambda key: key != self.objective)}

    @property
    def scored(self) -> list[SearchTrial]:
        """Trials with a score, the best first."""
        return ranked(self.trials, higher_is_better=self.higher_is_better)

    @property
    def unscored(self) -> list[SearchTrial]:
        """Trials that failed, or whose score is not finite."""
        return [trial for trial in self.trials if not trial.is_scored]


def higher_is_better(objective: str, monitor: Monitor) -> bool:
    """Whether a higher objective is better."""
    return objective == "val_score" and monitor.mode == "max"


def ranked(trials: Sequence[SearchTrial], *, higher_is_better: bool) -> list[SearchTrial]:
    """Trials with a score, the best first; equal ones by their loss, then the earlier first.

    Those that trained longest come first: scores of shorter ones are not final.
    """
    sign = -1 if higher_is_better else 1
    scored = [trial for trial in trials if trial.is_scored]
    return sorted(
        scored,
        key=lambda t: (-t.share, sign * t.result, t.val_loss or 0.0, t.started, t.name),
    )


def describe_rule(objective: str, monitor: Monitor) -> str:
    """By what trials are ranked, after "its": the score, which end is better, and ties."""
    ends = "higher" if higher_is_better(objective, monitor) else "lower"
    if objective == "val_loss":
        return f"loss ({ends} is better; ties: the earlier trial)"
    name = monitor.metric.replace("_", " ")
    return f"{name} ({ends} is better; ties: the lower loss, then the earlier trial)"


def describe_choice(best: Sequence[SearchTrial], objective: str, monitor: Monitor) -> str:
    """Which of the ranked trials is taken, and why it where others have the same score."""
    first = best[0]
    equal = [trial for trial in best if (trial.share, trial.score) == (first.share, first.score)]
    text = f"Trial {first.name} is the best"
    if len(equal) == 1:
        return f"{text}."
    names = enumerated([trial.name for trial in equal[1:]], _MOST_NAMED)
    name = "loss" if objective == "val_loss" else monitor.metric.replace("_", " ")
    text += (
        f": trials {names} have the same {name}"
        if len(equal) > 2
        else (f": trial {names} has the same {name}")
    )
    losses = [trial.val_loss for trial in equal]
    if losses.count(losses[0]) == 1:
        return f"{text}, and it has the lowest loss, {first.val_loss:.3f}."
    return f"{text}, and of those with the lowest loss, {first.val_loss:.3f}, it was the first."


def shown(value: Any) -> str:
    """A value of the search space with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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


@dataclass(frozen=True)
class StartedTrial:
    """A started trial; `attempt` is above 1 if the process was killed in earlier attempts."""

    name: str
    values: dict[str, Any]
    worker: str
    started: float
    attempt: int


@dataclass(frozen=True)
class TrialLog:
    """The trials below one search's folder."""

    folder: RunFolder

    def begin(
        self, name: str, spec: RunSpec, values: dict[str, Any], *, worker: str
    ) -> StartedTrial:
        """Record the start of a trial, which may be a further attempt."""
        before = self._read(name, _BEGUN)
        attempt = before["attempt"] + 1 if before else 1
        begun = StartedTrial(name, values, worker, time.time(), attempt)
        trial = self.trial(name)
        (trial.path / _RESULT).unlink(missing_ok=True)
        trial.write_json("spec.json", spec_to_dict(spec))
        trial.write_json(_BEGUN, asdict(begun))
        return begun

    def note(self, name: str, progress: str) -> None:
        """Record the progress of a trial, for the progress table only."""
        (self.trial(name).path / _PROGRESS).write_text(progress, encoding="utf-8")

    def end(self, trial: SearchTrial) -> None:
        """Record the result of a trial."""
        self.trial(trial.name).write_json(_RESULT, asdict(trial))

    def drop(self, name: str) -> None:
        """Remove the record of a started trial: it was stopped on purpose and did not fail."""
        (self.trial(name).path / _BEGUN).unlink(missing_ok=True)

    def trial(self, name: str) -> RunFolder:
        """A trial's folder."""
        return RunFolder(self.folder.path / TRIALS / name)

    def ended(self) -> list[SearchTrial]:
        """All ended trials, by name."""
        found = (self.result(name) for name in self._names())
        return [trial for trial in found if trial]

    def result(self, name: str) -> SearchTrial | None:
        """The result of a trial, None if it has not ended."""
        values = self._read(name, _RESULT)
        return SearchTrial(**values) if values else None

    def running(self) -> list[tuple[StartedTrial, str]]:
        """Trials that are not ended, with their progress."""
        running = []
        for name in self._names():
            begun = self._read(name, _BEGUN)
            if begun and not self._read(name, _RESULT):
                running.append((StartedTrial(**begun), self._progress(name)))
        return running

    def _progress(self, name: str) -> str:
        path = self.trial(name).path / _PROGRESS
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def _names(self) -> list[str]:
        folder = self.folder.path / TRIALS
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def _read(self, name: str, file: str) -> Any:
        path: Path = self.trial(name).path / file
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
