"""A finished study: its trials, and the groups of them that are compared."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from keras_transfer.data.records import Records
from keras_transfer.evaluation.intervals import Interval
from keras_transfer.evaluation.plots import SizePoint
from keras_transfer.evaluation.results import Headline
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.task import Task


@dataclass(frozen=True, eq=False)
class StudyTrial:
    """One finished training of a study, evaluated on held-out images that it never used.

    `fold` counts from 1 and is None without folds. `score` is the task's headline over the
    `num_held_out` images. Views are counted as in cache.json. `phases` have name, epochs, seconds,
    val_score and kept. `rows` int64 [N] are the held-out images, `outputs` float32 [N, K] their
    predictions.
    """

    name: str
    seed: int
    fold: int | None
    train_size: int
    num_held_out: int
    score: float
    seconds: float
    views_computed: int
    views_found: int
    views_trained_on: int
    phases: list[dict[str, Any]]
    rows: np.ndarray
    outputs: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The trial's entry in study.json: everything but rows and outputs."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in names if name not in ("rows", "outputs")}


@dataclass(frozen=True, eq=False)
class Study:
    """All trials of a spec. `groups` are the rows of its table."""

    spec: RunSpec
    run: RunFolder
    task: Task
    records: Records
    trials: tuple[StudyTrial, ...]

    @property
    def kind(self) -> str:
        """'learning curve', 'cross-validation' or 'repeats'."""
        if self.spec.halvings:
            return "learning curve"
        return "cross-validation" if self.spec.folds > 1 else "repeats"

    @property
    def by(self) -> str:
        """The field that the trials of a group share: 'train_size', 'fold' or 'seed'."""
        if self.spec.halvings:
            return "train_size"
        return "fold" if self.spec.folds > 1 and self.spec.seeds == 1 else "seed"

    @property
    def groups(self) -> "list[Group]":
        """The trials by the values of the field `by`."""
        members: dict[int, list[StudyTrial]] = {}
        for trial in self.trials:
            members.setdefault(getattr(trial, self.by), []).append(trial)
        return [self.group(value, trials) for value, trials in members.items()]

    def group(self, value: int, trials: Sequence[StudyTrial]) -> "Group":
        """Some of the trials, evaluated together."""
        headline = None
        if len({trial.seed for trial in trials}) == 1:
            # Every image is held out at most once: they are evaluated as one split.
            rows = np.concatenate([trial.rows for trial in trials])
            outputs = np.concatenate([trial.outputs for trial in trials])
            headline = self.task.headline(self.records.targets.values[rows], outputs)
        return Group(value, tuple(trials), headline)


@dataclass(frozen=True)
class Group:
    """Trials in one row of the table: a fold, a seed with all its folds, or a training size.

    `value` is that of their common field; `headline` is over all their held-out images, None for
    trials of several seeds.
    """

    value: int
    trials: tuple[StudyTrial, ...]
    headline: Headline | None

    @property
    def is_of_one_seed(self) -> bool:
        """Whether every image was held out at most once."""
        return self.headline is not None

    @property
    def score(self) -> float:
        """Over all held-out images; the median over trials if these are of several seeds."""
        return self.headline.value if self.headline else median(self._scores)

    @property
    def interval(self) -> Interval:
        """95 %; minimum and maximum over trials if these are of several seeds."""
        return self.headline.interval if self.headline else (min(self._scores), max(self._scores))

    @property
    def num_held_out(self) -> int:
        """Images that the trials were evaluated on, all together."""
        return sum(trial.num_held_out for trial in self.trials)

    @property
    def statistics(self) -> dict[str, Any]:
        """Summary statistics of the trials' scores."""
        return summary_statistics(self._scores)

    @property
    def point(self) -> SizePoint:
        """The group's point in the learning curve."""
        return SizePoint(self.value, self.score, self.interval, tuple(self._scores))

    @property
    def _scores(self) -> list[float]:
        return [trial.score for trial in self.trials]


def summary_statistics(values: Sequence[float]) -> dict[str, Any]:
    """Minimum, median, maximum, mean and sample standard deviation, None for a single value."""
    return {
        "minimum": min(values),
        "median": median(values),
        "maximum": max(values),
        "mean": mean(values),
        "standard_deviation": stdev(values) if len(values) > 1 else None,
    }
