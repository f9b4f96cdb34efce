"""A finished study: its trials, and the groups of them that are compared."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from keras_transfer.data.records import Records
from keras_transfer.evaluation.intervals import Interval, wilson
from keras_transfer.evaluation.plots import SizePoint
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class StudyTrial:
    """One finished training of a study, evaluated on held-out images that it never used.

    `fold` counts from 1 and is None without folds. `num_right` of the `num_held_out` images were
    classified correctly. Views are counted as in cache.json. `phases` have name, epochs, seconds,
    val_accuracy and kept. `rows` int64 [N] are the held-out images, `probabilities` float32
    [N, C] their predictions.
    """

    name: str
    seed: int
    fold: int | None
    train_size: int
    num_held_out: int
    num_right: int
    accuracy: float
    seconds: float
    views_computed: int
    views_found: int
    views_trained_on: int
    phases: list[dict[str, Any]]
    rows: np.ndarray
    probabilities: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The trial's entry in study.json: everything but rows and probabilities."""
        names = [field.name for field in dataclasses.fields(self)]
        return {
            name: getattr(self, name) for name in names if name not in ("rows", "probabilities")
        }


@dataclass(frozen=True, eq=False)
class Study:
    """All trials of a spec. `groups` are the rows of its table."""

    spec: RunSpec
    run: RunFolder
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
        """The trials by what they are compared by."""
        members: dict[int, list[StudyTrial]] = {}
        for trial in self.trials:
            members.setdefault(getattr(trial, self.by), []).append(trial)
        return [Group(value, tuple(trials)) for value, trials in members.items()]


@dataclass(frozen=True)
class Group:
    """Trials in one row of the table: a fold, a seed with all its folds, or a training size.

    `value` is that of the field they share.
    """

    value: int
    trials: tuple[StudyTrial, ...]

    @property
    def is_of_one_seed(self) -> bool:
        """Whether every image was held out at most once."""
        return len({trial.seed for trial in self.trials}) == 1

    @property
    def accuracy(self) -> float:
        """Over all held-out images; the median over trials if these are of several seeds."""
        if self.is_of_one_seed:
            return self._num_right / self.num_held_out
        return median(self._accuracies)

    @property
    def interval(self) -> Interval:
        """95 %, Wilson's; minimum and maximum over trials if these are of several seeds."""
        if self.is_of_one_seed:
            return wilson(self._num_right, self.num_held_out)
        return min(self._accuracies), max(self._accuracies)

    @property
    def num_held_out(self) -> int:
        """Images that the trials were evaluated on, all together."""
        return sum(trial.num_held_out for trial in self.trials)

    @property
    def statistics(self) -> dict[str, float | None]:
        """Summary statistics of the trials' accuracies."""
        return summary_statistics(self._accuracies)

    @property
    def point(self) -> SizePoint:
        """As the learning curve shows it."""
        return SizePoint(self.value, self.accuracy, self.interval, tuple(self._accuracies))

    @property
    def _num_right(self) -> int:
        return sum(trial.num_right for trial in self.trials)

    @property
    def _accuracies(self) -> list[float]:
        return [trial.accuracy for trial in self.trials]


def summary_statistics(values: Sequence[float]) -> dict[str, float | None]:
    """Minimum, median, maximum, mean and sample standard deviation, None for a single value."""
    return {
        "minimum": min(values),
        "median": median(values),
        "maximum": max(values),
        "mean": mean(values),
        "standard_deviation": stdev(values) if len(values) > 1 else None,
    }
