"""Trials: the trainings that a study is made of, each on its own splits and with its own seed."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_transfer.config import override
from keras_transfer.data.records import Records
from keras_transfer.data.splits import Splits, make_folds, make_splits, with_train_size
from keras_transfer.devices import forgetting_graphs, set_up
from keras_transfer.experiments.descriptions import describe_cache
from keras_transfer.experiments.run import Data
from keras_transfer.features.phase_inputs import PhaseInputs, Pool
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.training.fitting import fit_phases, prepare_classifier

ONE_RUN = {"folds": 1, "seeds": 1, "halvings": 0}


@dataclass(frozen=True, eq=False)
class Trial:
    """One training of a study. `splits.test` are the rows it is judged on; `fold` is from 1."""

    name: str
    spec: RunSpec
    splits: Splits
    fold: int | None = None


@dataclass(frozen=True)
class TrialResult:
    """What one trial ended with, as `study.json` has it.

    `num_right` of `num_held_out` images that it never trained or chose on were named right.
    Views are counted as in `cache.json`. `phases` have name, epochs, seconds, val_accuracy, kept.
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


def plan_trials(
    spec: RunSpec, records: Records, apart: np.ndarray, *, reporter: Reporter
) -> list[Trial]:
    """All trials of a study, in the order in which they run.

    Args:
        records: audited.
        apart: rows of the test split of `spec.seed`, which cross-validation leaves alone.

    Raises:
        DataError: the images do not suffice for so many folds or splits.
    """
    seeds = [spec.seed + number for number in range(spec.seeds)]
    if spec.folds > 1:
        return [
            _trial(spec, splits, fold=fold)
            for seed in seeds
            for fold, splits in enumerate(
                make_folds(records, spec.data, apart, num_folds=spec.folds, seed=seed), 1
            )
        ]
    drawn = [make_splits(records, spec.data, seed=seed) for seed in seeds]
    if not spec.halvings:
        return [_trial(spec, splits) for splits in drawn]
    sizes = _halve(min(len(splits.train) for splits in drawn), spec, records, reporter)
    return [
        _trial(spec, with_train_size(splits, records, size)) for splits in drawn for size in sizes
    ]


def _trial(spec: RunSpec, splits: Splits, *, fold: int | None = None) -> Trial:
    parts = []
    if fold:
        parts.append(f"fold {fold} of {spec.folds}")
    if spec.halvings:
        parts.append(f"{len(splits.train):,} images")
    if spec.seeds > 1 or not parts:
        parts.append(f"seed {splits.seed}")
    name = ", ".join(parts)
    return Trial(name, override(spec, {**ONE_RUN, "seed": splits.seed}), splits, fold)


def _halve(size: int, spec: RunSpec, records: Records, reporter: Reporter) -> list[int]:
    """Numbers of training images, the largest first, with one image a class at least."""
    wanted = [size // 2**number for number in range(spec.halvings + 1)]
    sizes = [size for size in wanted if size >= len(records.class_names)]
    if len(sizes) < len(wanted):
        reporter.info(
            f"The learning curve ends at {sizes[-1]:,} training images, after "
            f"{len(sizes) - 1} of {spec.halvings} halvings: with half of them not every one of "
            f"the {len(records.class_names)} classes would have an image."
        )
    return sizes


def pools(trials: Sequence[Trial]) -> list[Pool]:
    """For each trial the rows of all that have its trunk."""
    siblings: dict[int | None, list[Splits]] = {}
    for trial in trials:
        siblings.setdefault(_trunk_of(trial), []).append(trial.splits)
    union = {trunk: Pool.of(*splits) for trunk, splits in siblings.items()}
    return [union[_trunk_of(trial)] for trial in trials]


def _trunk_of(trial: Trial) -> int | None:
    """Random weights depend on the seed, all others do not."""
    return trial.spec.seed if trial.spec.model.weights == "none" else None


def run_trial(
    trial: Trial, data: Data, pool: Pool, *, cache: Cache, reporter: Reporter
) -> tuple[TrialResult, np.ndarray]:
    """Train once; the result and probabilities float32 [N, C] of the N held-out images.

    Args:
        data: audited; its own splits play no part.
        pool: rows whose views are stored together, see `pools`.

    Raises:
        RunError: training diverged, or features cannot be stored.
    """
    started = time.perf_counter()
    # Otherwise Keras keeps something of every model. It resets the dtype policy as well.
    keras.utils.clear_session()
    spec, splits = trial.spec, trial.splits
    set_up(spec.devices, seed=spec.seed)
    classifier = prepare_classifier(spec, data.records.class_names)
    phase_inputs = PhaseInputs(spec, data.source, splits, cache=cache, reporter=reporter, pool=pool)
    with forgetting_graphs():
        outcomes = fit_phases(classifier, phase_inputs, reporter=reporter)
    probabilities = phase_inputs.predict(classifier, splits.test)
    right = int(np.sum(probabilities.argmax(axis=1) == data.examples.labels[splits.test]))
    usage = describe_cache(data.num_decoded, phase_inputs.extraction_stats, outcomes, splits)
    kept = ("name", "epochs", "seconds", "val_accuracy", "kept")
    result = TrialResult(
        name=trial.name,
        seed=spec.seed,
        fold=trial.fold,
        train_size=len(splits.train),
        num_held_out=len(splits.test),
        num_right=right,
        accuracy=right / len(splits.test),
        seconds=time.perf_counter() - started,
        views_computed=usage["views_computed"],
        views_found=usage["views_found"],
        views_trained_on=usage["views_trained_on"],
        phases=[{name: dataclasses.asdict(o)[name] for name in kept} for o in outcomes],
    )
    return result, probabilities
