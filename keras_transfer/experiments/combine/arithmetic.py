"""Arithmetic of weights: the first run's network, with what other runs changed added or removed.

    trunk of the first run  ±  scale · sum over the other runs of (their trunk - pretrained trunk)

The runs begin with the same pretrained trunk and may have other tasks and classes. Task, head and
statistics of BatchNormalization are those of the first run. Without a scale it is the one of 0,
0.1, … 1 with the lowest loss on the first run's validation images; 0 leaves the run as it is.

Source: G. Ilharco et al., "Editing models with task arithmetic", ICLR 2023.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import keras
import numpy as np

from keras_transfer.data.splits import read_manifest
from keras_transfer.errors import DataError, SpecError
from keras_transfer.experiments.combine.choice import Choice, choose_point
from keras_transfer.experiments.combine.members import load_member, load_repeatable
from keras_transfer.experiments.combine.networks import averaged
from keras_transfer.experiments.evaluation import predict_split
from keras_transfer.inference.prediction import LoadedRun
from keras_transfer.models.classifier import build_classifier
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import HEAD

SCALES: Final = tuple(tenth / 10 for tenth in range(11))
_STARTS = ("backbone", "last_stage", "weights", "preprocess")
_STATISTICS = ("moving_mean", "moving_variance")

Changes = Mapping[str, np.ndarray]
"""What a run changed of its trunk, by the variable's path in the graph of the network."""


def add(paths: Sequence[str | Path], scale: float | None, reporter: Reporter) -> Choice:
    """The first run with the changes of the others added; errors as in `_combine`."""
    return _combine(paths, scale, reporter, sign=1)


def negate(paths: Sequence[str | Path], scale: float | None, reporter: Reporter) -> Choice:
    """The first run with the changes of the others removed; errors as in `_combine`."""
    return _combine(paths, scale, reporter, sign=-1)


def _combine(
    paths: Sequence[str | Path], scale: float | None, reporter: Reporter, *, sign: int
) -> Choice:
    """The first run, moved along the changes of the others.

    Raises:
        RunError: there is no finished run.
        SpecError: the runs have other trunks, changed nothing of it, or there is no scale and no
            image to choose one on.
        DataError: other runs were trained on validation or test images of the first.
        WeightsError: the pretrained weights are missing.
    """
    first, *others = load_repeatable(paths)
    _check_starts([first, *others])
    if scale is None and first.folder.read_json("metrics.json").get("refit"):
        raise SpecError(
            "the scale is chosen on validation images, which the first run was trained on",
            expected="a first run with training.refit=false, or a scale",
            received=str(first.folder.path),
            fix="train it with training.refit=false, or give one, such as scale=0.3",
        )
    _check_images(first, others, chooses=scale is None)
    total = _sum_of_changes(first, others)
    members = load_member(first, reporter, chooses=scale is None)

    def network(position: float) -> keras.Model:
        return _moved(first.model, total, sign * position)

    def predict(position: float) -> np.ndarray:
        moved = dataclasses.replace(first, model=network(position))
        return predict_split(moved, "val", reporter)[2]

    def title(position: float) -> str:
        names = " and ".join(run.folder.path.name for run in others)
        word = "plus" if sign > 0 else "minus"
        return f"{members.best.name} {word} {position:g} times what {names} changed"

    if scale is not None:
        return Choice(members, network(scale), title(scale), members.items, None, None)
    found, val, points = choose_point(members, SCALES, predict)
    loss = members.val_loss(val)
    return Choice(members, network(found), title(found), members.items, val, loss, points)


def _sum_of_changes(first: LoadedRun, others: Sequence[LoadedRun]) -> Changes:
    """The sum of what the other runs changed of the trunk.

    Raises:
        SpecError: a network has other weights, or the trunk of some run is as it was.
    """
    spec = first.spec
    start = build_classifier(
        spec.model, image_size=spec.data.image_size, task=first.task, seed=spec.seed
    )
    trunk = [layer for name, layers in start.stages.items() if name != HEAD for layer in layers]
    values = _weights_of(start.model, [layer.name for layer in trunk])
    own = [_weights_of(run.model, [layer.name for layer in trunk]) for run in (first, *others)]
    shapes = [{name: value.shape for name, value in one.items()} for one in (values, *own)]
    runs = zip((first, *others), shapes[1:], strict=True)
    if different := [run for run, one in runs if one != shapes[0]]:
        raise _unfit(different, "the weights of the pretrained backbone")
    moved = [{name: one[name] - values[name] for name in values} for one in own[1:]]
    changes = zip(others, moved, strict=True)
    still = [run for run, one in changes if not any(map(np.any, one.values()))]
    if still:
        raise SpecError(
            "these runs changed nothing of the backbone",
            expected="runs with a phase that unfreezes stages of it, and that was kept",
            received=_paths(still),
            fix="leave them out, or train them with phases.1.min_images=0",
        )
    return {name: np.sum([one[name] for one in moved], axis=0) for name in values}


def _weights_of(model: keras.Model, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The weights of some layers, without statistics, by layer and variable; missing ones lack."""
    layers = {layer.name: layer for layer in model.layers}
    return {
        f"{name}/{variable.name}": np.asarray(variable, np.float64)
        for name in names
        if name in layers
        for variable in layers[name].weights
        if variable.name not in _STATISTICS
    }


def _moved(model: keras.Model, changes: Changes, scale: float) -> keras.Model:
    """A copy of the model with `scale` times the changes added to its trunk."""
    values = []
    for layer in model.layers:
        for variable in layer.weights:
            change = changes.get(f"{layer.name}/{variable.name}")
            value = np.array(variable)
            values.append(value if change is None else (value + scale * change).astype(value.dtype))
    return averaged(model, values)


def _check_starts(runs: Sequence[LoadedRun]) -> None:
    """Raise SpecError unless all runs began with the same trunk, and there are two."""
    if len(runs) < 2:
        raise SpecError(
            "there are no changes to add",
            expected="the run to change, and one or more others",
            received=_paths(runs) or "none",
            fix="give several run folders, the one to change first",
        )

    def start(run: LoadedRun) -> list[object]:
        # Random weights depend on the seed, all others do not.
        seed = [run.spec.seed] if run.spec.model.weights == "none" else []
        return [*(getattr(run.spec.model, name) for name in _STARTS), *seed]

    if different := [run for run in runs[1:] if start(run) != start(runs[0])]:
        raise _unfit(different, f"{', '.join(_STARTS)} of {runs[0].folder.path}")


def _unfit(runs: Sequence[LoadedRun], expected: str) -> SpecError:
    return SpecError(
        "changes of other networks cannot be added",
        expected=expected,
        received=_paths(runs),
        fix="leave these runs out, or combine runs of other networks by how=ensemble",
    )


def _check_images(first: LoadedRun, others: Sequence[LoadedRun], *, chooses: bool) -> None:
    """Raise DataError if others were trained on images that the first is chosen or tested on."""
    own = _digests(first)
    kept = own["test"] | (own["val"] if chooses else set())
    found = []
    for run in others:
        images = _digests(run)
        is_refitted = run.folder.read_json("metrics.json").get("refit")
        # Validation images choose a run's epochs; runs on the same splits share them.
        spared = set() if is_refitted else images["val"] & own["val"]
        if common := len(kept & (images["train"] | images["val"] - spared)):
            found.append(f"{run.folder.path}: {common:,} images")
    if found:
        raise DataError(
            "other runs were trained on validation or test images of the first",
            expected=f"none of those of {first.folder.path}",
            received="; ".join(found),
            fix="train them on other images, or with the same seed and fields of data",
        )


def _digests(run: LoadedRun) -> dict[str, set[str]]:
    """The digests of a run's images, by split."""
    records, splits = read_manifest(run.folder.read_json("splits.json"))
    return {
        name: {records[row].digest for row in getattr(splits, name)}
        for name in ("train", "val", "test")
    }


def _paths(runs: Sequence[LoadedRun]) -> str:
    return ", ".join(str(run.folder.path) for run in runs)
