"""Folds hold every image out once, keep classes in proportion and groups whole."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from labelled import records_of
from sklearn.model_selection import StratifiedGroupKFold

from keras_transfer.data.records import Record, Records
from keras_transfer.data.splits import Splits, make_folds, make_splits
from keras_transfer.errors import DataError
from keras_transfer.specs import DataSpec

NOTHING = np.array([], np.int64)


def make_records(labels, *, groups=None, copies=None) -> Records:
    """Records as the audit leaves them, without any file; equal numbers in `copies` are copies."""
    items = tuple(
        Record(
            path=f"{label}/{row:06d}.png",
            target=(str(label),),
            group=groups[row] if groups else None,
            digest=hashlib.sha256(str(copies[row] if copies else row).encode()).hexdigest(),
        )
        for row, label in enumerate(labels)
    )
    return records_of(items, Path("/nowhere"))


def classes_of(records: Records, rows: np.ndarray) -> Counter:
    return Counter(records.items[row].label for row in rows)


def fold_of_row(folds: tuple[Splits, ...]) -> dict[int, int]:
    return {row: fold for fold, splits in enumerate(folds) for row in splits.test.tolist()}


@pytest.mark.parametrize("num_folds", [2, 5, 7])
def test_every_image_but_those_apart_is_held_out_once(num_folds):
    records = make_records(["a"] * 53 + ["b"] * 31 + ["c"] * 11)
    apart = np.arange(0, 95, 9)
    folds = make_folds(records, DataSpec(), apart, num_folds=num_folds, seed=0)
    assert len(folds) == num_folds
    held_out = sorted(row for splits in folds for row in splits.test.tolist())
    assert held_out == sorted(set(range(95)) - set(apart.tolist()))
    for splits in folds:
        parts = [splits.train, splits.val, splits.test]
        rows = [row for part in parts for row in part.tolist()]
        assert sorted(rows) == held_out
        for part in parts:
            assert part.dtype == np.int64
            assert (np.diff(part) > 0).all()
            assert classes_of(records, part).keys() == {"a", "b", "c"}


def test_folds_differ_by_one_image_at_most_in_every_class_and_in_all():
    records = make_records("a" * 13 + "b" * 27 + "c" * 8 + "d" * 61)
    folds = make_folds(records, DataSpec(), NOTHING, num_folds=5, seed=3)
    for name in "abcd":
        counts = [classes_of(records, splits.test)[name] for splits in folds]
        assert max(counts) - min(counts) <= 1
    sizes = [len(splits.test) for splits in folds]
    assert max(sizes) - min(sizes) <= 1


def test_validation_is_the_fraction_of_what_is_not_held_out():
    records = make_records(["a"] * 100 + ["b"] * 100)
    folds = make_folds(records, DataSpec(val_fraction=0.25), NOTHING, num_folds=4, seed=0)
    for splits in folds:
        assert classes_of(records, splits.test) == {"a": 25, "b": 25}
        assert sorted(classes_of(records, splits.val).values()) == [19, 19]
        assert (splits.val_fraction, splits.test_fraction) == (0.25, 0.25)


def test_folds_repeat_with_the_seed_and_change_with_it():
    records = make_records("ab" * 40)
    first, again, other = (
        fold_of_row(make_folds(records, DataSpec(), NOTHING, num_folds=5, seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_whole_and_classes_no_worse_off_than_with_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(150), generator.integers(1, 10, 150))
    labels = np.array(list("abc"))[generator.choice(3, 150, p=[0.6, 0.3, 0.1])][groups]
    records = make_records(labels.tolist(), groups=[f"g{group}" for group in groups])
    folds = make_folds(records, DataSpec(), NOTHING, num_folds=5, seed=seed)
    for splits in folds:
        sets = [set(groups[rows].tolist()) for rows in (splits.train, splits.val, splits.test)]
        assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]

    def misfit(held_out: list[np.ndarray]) -> float:
        return sum(
            abs((labels[rows] == name).sum() - (labels == name).sum() / 5)
            for rows in held_out
            for name in "abc"
        )

    theirs = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=seed)
    theirs = [rows for _, rows in theirs.split(labels, labels, groups)]
    assert misfit([splits.test for splits in folds]) <= misfit(theirs)


def test_exact_copies_are_held_out_together():
    copies = [row // 4 for row in range(200)]
    records = make_records(["a"] * 100 + ["b"] * 100, copies=copies)
    where = fold_of_row(make_folds(records, DataSpec(), NOTHING, num_folds=5, seed=0))
    assert all(len({where[4 * unit + k] for k in range(4)}) == 1 for unit in range(50))


def test_a_class_with_just_enough_images_is_in_every_fold():
    records = make_records(["many"] * 200 + ["few"] * 5)
    for splits in make_folds(records, DataSpec(), NOTHING, num_folds=5, seed=0):
        assert classes_of(records, splits.test)["few"] == 1
        assert classes_of(records, splits.val)["few"] == 1
        assert classes_of(records, splits.train)["few"] == 3


@pytest.mark.parametrize("copies", [False, True])
def test_a_class_with_fewer_images_than_folds_is_refused(copies):
    rows = list(range(44))
    if copies:
        rows[40:] = [40, 41, 41, 41]
    records = make_records(["many"] * 40 + ["few"] * 4, copies=rows)
    with pytest.raises(DataError, match="'few' has too few files for 5 folds") as raised:
        make_folds(records, DataSpec(), NOTHING, num_folds=5, seed=0)
    copied = ", 2 without copies and members of one group" if copies else ""
    assert raised.value.received.strip() == f"'few': 4 files{copied}"
    assert "lower folds" in raised.value.fix


def test_groups_that_keep_a_class_out_of_a_part_are_refused_by_name():
    # Both classes are in two groups, and in two folds each has one left to train and validate on.
    records = make_records("ab" * 8, groups=[f"g{row // 8}" for row in range(16)])
    with pytest.raises(DataError, match="2 classes, 'a', 'b', have"):
        make_folds(records, DataSpec(), NOTHING, num_folds=2, seed=0)


def test_train_size_holds_in_every_fold():
    records = make_records("ab" * 50)
    for splits in make_folds(records, DataSpec(train_size=12), NOTHING, num_folds=4, seed=0):
        assert classes_of(records, splits.train) == {"a": 6, "b": 6}
        assert len(splits.test) == 25


def test_the_test_split_of_a_run_can_stay_apart():
    records = make_records("ab" * 50)
    apart = make_splits(records, DataSpec(), seed=0).test
    folds = make_folds(records, DataSpec(), apart, num_folds=5, seed=7)
    for splits in folds:
        for rows in (splits.train, splits.val, splits.test):
            assert not set(rows.tolist()) & set(apart.tolist())
