"""A finished study: its trials, and the groups of them that one wants to compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

import numpy as np

from keras_transfer.data.records import Records
from keras_transfer.evaluation.intervals import Interval, wilson
from keras_transfer.evaluation.plots import SizePoint
from keras_transfer.experiments.study.trials import TrialResult
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class TrialDone:
    """A trial's result with its held-out rows and their probabilities float32 [N, C]."""

    result: TrialResult
    rows: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True, eq=False)
class Study:
    """All trials of a spec. `groups` are the rows of its table."""

    spec: RunSpec
    run: RunFolder
    records: Records
    trials: tuple[TrialDone, ...]

    @property
    def results(self) -> list[TrialResult]:
        """What the trials ended with, in order."""
        return [trial.result for trial in self.trials]

    @property
    def kind(self) -> str:
        """What was asked: 'learning curve', 'cross-validation' or 'repeats'."""
        if self.spec.halvings:
            return "learning curve"
        return "cross-validation" if self.spec.folds > 1 else "repeats"

    @property
    def by(self) -> str:
        """The field of results that groups share: 'train_size', 'fold' or 'seed'."""
        if self.spec.halvings:
            return "train_size"
        return "fold" if self.spec.folds > 1 and self.spec.seeds == 1 else "seed"

    @property
    def groups(self) -> "list[Group]":
        """The trials by what they are compared by."""
        members: dict[int, list[TrialResult]] = {}
        for result in self.results:
            members.setdefault(getattr(result, self.by), []).append(result)
        return [Group(value, tuple(results)) for value, results in members.items()]


@dataclass(frozen=True)
class Group:
    """Trials that stand in one row: a fold, a seed with all its folds, or a size with all seeds.

    `value` is that of the field they share.
    """

    value: int
    results: tuple[TrialResult, ...]

    @property
    def is_of_one_seed(self) -> bool:
        """Whether every image was held out once at most."""
        return len({result.seed for result in self.results}) == 1

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
        """Images that the trials were judged on, all together."""
        return sum(result.num_held_out for result in self.results)

    @property
    def spread(self) -> dict[str, float | None]:
        """Of the accuracies of its trials."""
        return spread(self._accuracies)

    @property
    def point(self) -> SizePoint:
        """As the learning curve shows it."""
        return SizePoint(self.value, self.accuracy, self.interval, tuple(self._accuracies))

    @property
    def _num_right(self) -> int:
        return sum(result.num_right for result in self.results)

    @property
    def _accuracies(self) -> list[float]:
        return [result.accuracy for result in self.results]


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Minimum, median, maximum, mean and sample standard deviation, None for a single value."""
    return {
        "minimum": min(values),
        "median": median(values),
        "maximum": max(values),
        "mean": mean(values),
        "standard_deviation": stdev(values) if len(values) > 1 else None,
    }
