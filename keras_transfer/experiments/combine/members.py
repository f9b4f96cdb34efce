"""The runs that are combined: what they must have in common, and their outputs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_transfer.data.audit import pixels_key
from keras_transfer.data.splits import read_manifest
from keras_transfer.errors import DataError, SpecError
from keras_transfer.experiments.evaluation import predict_split
from keras_transfer.export.card import hash_weights
from keras_transfer.inference.prediction import LoadedRun, load_run
from keras_transfer.methods.registry import check_repeatable, make_methods
from keras_transfer.reporting.reporter import Reporter

_STARTS = ("backbone", "last_stage", "weights", "preprocess", "pooling", "head", "hidden_units")
"""Fields of `model` that runs whose weights can be averaged have in common."""

_OF_WEIGHTS = ("soup", "line")
"""Kinds that average weights."""


@dataclass(frozen=True, eq=False)
class Member:
    """A run with its outputs [N, K] on the validation and the test split.

    `val_loss` is the task's loss on validation. If the run was trained on that split as well (its
    refit), it has no `val` and no loss.
    """

    run: LoadedRun
    test: np.ndarray
    val: np.ndarray | None
    val_loss: float | None

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.run.folder.path.name


@dataclass(frozen=True, eq=False)
class Members:
    """The runs in an order that does not depend on how they were given: the best on validation
    first, and runs without a loss by their weights. `values` are those of the tested images.
    """

    items: tuple[Member, ...]
    val_values: np.ndarray
    test_values: np.ndarray

    @property
    def best(self) -> Member:
        """The first."""
        return self.items[0]

    def val_loss(self, outputs: np.ndarray) -> float:
        """The task's mean loss of outputs [N, K] on the validation split."""
        return float(self.best.run.task.example_losses(self.val_values, outputs).mean())

    @property
    def can_choose(self) -> bool:
        """Whether there are validation images that no member was trained on."""
        return all(member.val is not None for member in self.items)


def load_members(paths: Sequence[str | Path], *, how: str, reporter: Reporter) -> Members:
    """Load runs and predict their validation and test images.

    Raises:
        RunError: there is no finished run.
        SpecError: runs do not fit together, or cannot be chosen on validation.
        DataError: runs have other splits, or their images are missing.
    """
    if len(paths) < 2:
        raise SpecError(
            "there is nothing to combine",
            expected="two runs or more",
            received=", ".join(map(str, paths)) or "none",
            fix="give several run folders",
        )
    runs = load_repeatable(paths)
    _check_same(runs, how)
    _check_splits(runs)
    chooses = _can_choose(runs, how)
    tested = [predict_split(run, "test", reporter) for run in runs]
    validated = [predict_split(run, "val", reporter) for run in runs] if chooses else []
    found = []
    for number, run in enumerate(runs):
        val, loss = None, None
        if chooses:
            _, values, val = validated[number]
            loss = float(run.task.example_losses(values, val).mean())
        found.append(Member(run, tested[number][2], val, loss))
    found.sort(key=lambda one: (one.val_loss or 0.0, hash_weights(one.run.model)))
    val_values = validated[0][1] if chooses else tested[0][1][:0]
    return Members(tuple(found), val_values, tested[0][1])


def load_repeatable(paths: Sequence[str | Path]) -> list[LoadedRun]:
    """Load runs whose methods may be combined: RunError, or SpecError for private ones."""
    runs = [load_run(path) for path in paths]
    for run in runs:
        check_repeatable(make_methods(run.spec))
    return runs


def load_member(run: LoadedRun, reporter: Reporter, *, chooses: bool) -> Members:
    """One run alone, with outputs on validation if it `chooses` there.

    Raises:
        DataError: its images are missing.
    """
    _, test_values, test = predict_split(run, "test", reporter)
    if not chooses:
        return Members((Member(run, test, None, None),), test_values[:0], test_values)
    _, values, val = predict_split(run, "val", reporter)
    loss = float(run.task.example_losses(values, val).mean())
    return Members((Member(run, test, val, loss),), values, test_values)


def _can_choose(runs: Sequence[LoadedRun], how: str) -> bool:
    """Whether none of the runs was trained on its validation images; raises SpecError for kinds
    of weights, which cannot do without them.
    """
    refitted = [
        run.folder.path.name for run in runs if run.folder.read_json("metrics.json").get("refit")
    ]
    if how in _OF_WEIGHTS and refitted:
        raise SpecError(
            f"the weights of a {how} are chosen on validation images, which these runs trained on",
            expected="runs with training.refit=false",
            received=", ".join(refitted),
            fix="train them with training.refit=false, or combine them by how=ensemble",
        )
    return not refitted


def _check_same(runs: Sequence[LoadedRun], how: str) -> None:
    """Raise SpecError unless the runs have the same outputs and read the same pixels."""
    compared: dict[str, Any] = {
        "task": lambda run: (run.task.name, dataclasses.asdict(run.task.options)),
        "classes": lambda run: run.task.names,
        "images": lambda run: pixels_key(run.spec.data).content,
    }
    if how in _OF_WEIGHTS:
        compared["networks"] = lambda run: [getattr(run.spec.model, name) for name in _STARTS]
        compared["weights"] = lambda run: [tuple(v.shape) for v in run.model.weights]
    for what, of in compared.items():
        different = [run for run in runs if of(run) != of(runs[0])]
        if different:
            raise SpecError(
                f"runs with other {what} cannot be combined",
                expected=f"the {what} of {runs[0].folder.path}: {_short(of(runs[0]))}",
                received="; ".join(f"{run.folder.path}: {_short(of(run))}" for run in different),
                fix="leave these runs out"
                + (", or combine them by how=ensemble" if what in ("networks", "weights") else ""),
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]} …"


def _check_splits(runs: Sequence[LoadedRun]) -> None:
    """Raise DataError unless the runs have the same validation and test images.

    A run is never trained on its own test images, so none is on those of another.
    """
    digests = []
    for run in runs:
        records, splits = read_manifest(run.folder.read_json("splits.json"))
        digests.append(
            [[records[row].digest for row in rows] for rows in (splits.val, splits.test)]
        )
    different = [run for run, own in zip(runs, digests, strict=True) if own != digests[0]]
    if different:
        raise DataError(
            "the runs have other validation or test images, on which others may have been trained",
            expected=f"the splits of {runs[0].folder.path}",
            received=", ".join(str(run.folder.path) for run in different),
            fix="train runs that differ in anything but seed and fields of data, or give images "
            "with splits of their own",
        )
