"""Interface of every task's evaluation: headline, text and tables; gains with standard errors."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from keras_transfer.evaluation.intervals import Interval


@dataclass(frozen=True)
class Headline:
    """The main figure of an evaluation, with its 95 % interval."""

    name: str
    value: float
    interval: Interval


class Table(NamedTuple):
    """A table for the terminal or a page; cells are formatted."""

    title: str
    header: list[str]
    rows: list[list[str]]


class Evaluation(Protocol):
    """All figures of one split."""

    @property
    def headline(self) -> Headline:
        """The main figure, by which evaluations are compared."""

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""

    def describe(self) -> str:
        """The main figures in a sentence."""

    def tables(self) -> list[Table]:
        """The figures by class, label or column."""


@dataclass(frozen=True)
class Gain:
    """Mean difference of the scores of two models on the same examples."""

    difference: float
    standard_error: float


def paired_gain(before: np.ndarray, after: np.ndarray) -> Gain:
    """Mean of `after` minus `before`, scores [N] of the same examples, and its standard error.

    With differences d the error is sqrt(Σd² − (Σd)² / n) / n: examples that score the same add no
    noise. For scores of 0 and 1 this is the standard error of a difference of paired proportions.

    Source: A. Agresti, "Categorical data analysis", on comparing dependent proportions.
    """
    differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    num_examples, net = len(differences), float(differences.sum())
    # Rounding may leave a number below 0 where all differences are equal.
    variance = max(0.0, float(np.square(differences).sum()) - net * net / num_examples)
    return Gain(net / num_examples, float(np.sqrt(variance)) / num_examples)
