"""Targets: what a model is trained to predict, one row per image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from keras_transfer.errors import DataError


@dataclass(frozen=True, eq=False, kw_only=True)
class Targets:
    """The targets of N images, and the groups whose shares every split keeps.

    `values` is int64 [N] with class indices, or float32 [N, K] with one column an output, where
    NaN marks a missing value. `names` has a name for each of the K outputs. `strata` is bool
    [N, S]: which images belong to which group; `strata_names` are the groups' names, and `kind` is
    the word for a group in messages.
    """

    values: np.ndarray
    names: tuple[str, ...]
    strata: np.ndarray
    strata_names: tuple[str, ...]
    kind: str = "class"

    @classmethod
    def of_classes(cls, labels: Sequence[int] | np.ndarray, names: Sequence[str]) -> "Targets":
        """One class for each image: class indices [N]; each class is a stratum."""
        values = np.asarray(labels, np.int64)
        strata = values[:, None] == np.arange(len(names))
        return cls(values=values, names=tuple(names), strata=strata, strata_names=tuple(names))

    def __len__(self) -> int:
        """N."""
        return len(self.values)

    def take(self, rows: np.ndarray) -> "Targets":
        """The targets of some images."""
        return replace(self, values=self.values[rows], strata=self.strata[rows])

    def joined(self, other: "Targets") -> "Targets":
        """The targets of these images and of others with the same outputs and groups."""
        return replace(
            self,
            values=np.concatenate([self.values, other.values]),
            strata=np.concatenate([self.strata, other.strata]),
        )

    def check_balanced(self, field: str) -> None:
        """Raise DataError where a stratum is empty; `field` is the field set to 'balanced'."""
        absent = np.flatnonzero(~self.strata.any(axis=0))
        if len(absent):
            raise DataError(
                f"{field}=balanced needs images of every {self.kind}",
                expected=f"images of each {self.kind} in the training split",
                received=f"none of {', '.join(self.strata_names[number] for number in absent)}",
                fix=f"add images of them, or set {field} back to its default",
            )
