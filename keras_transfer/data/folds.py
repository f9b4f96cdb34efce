"""Folds: every picture outside the test split is held out once, drawn like splits are.

Stratified by class, with groups and exact copies kept whole. scikit-learn's StratifiedGroupKFold
may leave a class out of a fold that could have had it, so the carving of splits draws folds too.
"""

import numpy as np

from keras_transfer.data import carving
from keras_transfer.data.records import Records, counted
from keras_transfer.data.splits import NAMES, Splits, carve_pool, with_train_size
from keras_transfer.errors import DataError
from keras_transfer.specs import DataSpec


def make_folds(
    records: Records, spec: DataSpec, apart: np.ndarray, *, num_folds: int, seed: int
) -> tuple[Splits, ...]:
    """Divide audited records into folds; in each of the results one of them is the test split.

    Of the other folds' rows `spec.val_fraction` validate and the rest trains, `spec.train_size` of
    them if that is set. A validation split of the source counts like any other rows.

    Args:
        apart: rows of the test split, which are in no fold.
        num_folds: 2 or more.

    Raises:
        DataError: a class has too few pictures to be in every fold, or in every part of one, or
            `spec.train_size` does not fit.
    """
    pool = np.setdiff1d(np.arange(len(records.items)), apart)
    fold_of_row = draw_folds(records, pool, num_folds, seed=seed)
    results = []
    for fold in range(num_folds):
        held_out, rest = pool[fold_of_row == fold], pool[fold_of_row != fold]
        split_of_row = carve_pool(records, rest, {"val": spec.val_fraction}, seed=seed)
        rows = {name: rest[split_of_row == name] for name in ("train", "val")} | {"test": held_out}
        _check_every_class(records, rows, fold)
        splits = Splits(
            **rows, seed=seed, val_fraction=spec.val_fraction, test_fraction=1 / num_folds
        )
        results.append(with_train_size(splits, records, spec.train_size))
    return tuple(results)


def draw_folds(records: Records, pool: np.ndarray, num_folds: int, *, seed: int) -> np.ndarray:
    """The fold of every pool row, int64 from 0; groups and exact copies are kept whole.

    Raises:
        DataError: a class has fewer pictures than there are folds.
    """
    items = [records.items[row] for row in pool]
    labels = np.array(records.labels(), np.int64)[pool]
    units = carving.find_units([item.digest for item in items], [item.group for item in items])
    counts = np.bincount(labels, minlength=len(records.class_names))
    num_units = carving.count_units(labels, units, len(records.class_names))
    for name, pictures, distinct in zip(records.class_names, counts, num_units, strict=True):
        if distinct < num_folds:
            raise DataError(
                f"class {name!r} is too small for {num_folds} folds",
                expected=f"at least {num_folds} pictures outside the test split, one for each fold",
                received=f"{counted(pictures, 'file', 'files')}; {distinct} without copies and "
                "members of one group",
                fix="lower folds, add pictures of the class, or leave it out",
            )
    generator = np.random.default_rng([seed, num_folds])
    return carving.carve(labels, units, _deal(counts, num_folds), generator).astype(np.int64)


def _deal(counts: np.ndarray, num_folds: int) -> dict[str, np.ndarray]:
    """How many pictures of each class every fold should get.

    Dealt like cards, one class after the other: folds differ by one picture at most, in each
    class and in all.
    """
    ends = np.cumsum(counts)
    dealt = {}
    for fold in range(num_folds):
        up_to_end, up_to_start = (
            (edges - fold + num_folds - 1) // num_folds for edges in (ends, ends - counts)
        )
        dealt[str(fold)] = up_to_end - up_to_start
    return dealt


def _check_every_class(records: Records, rows: dict[str, np.ndarray], fold: int) -> None:
    labels = np.array(records.labels(), np.int64)
    part_names = dict(zip(NAMES, ("training", "validation", "held-out"), strict=True))
    for part, members in rows.items():
        absent = set(range(len(records.class_names))) - set(labels[members].tolist())
        if absent:
            name = records.class_names[min(absent)]
            raise DataError(
                f"class {name!r} is missing from the {part_names[part]} pictures of fold "
                f"{fold + 1}",
                expected="at least one picture of every class in every part of every fold",
                received=f"{counted(int((labels == min(absent)).sum()), 'picture', 'pictures')} "
                "of the class, all in other parts",
                fix="lower folds, or make groups smaller",
            )
