"""Splits: which rows train, which choose and which judge, drawn once and written down.

A split that the source has is kept as it is. One that it lacks is carved out of its training
rows: stratified, seeded, with groups and exact copies kept together.

Folds: every image outside the test split is held out once, drawn like splits are.

Stratified by class, with groups and exact copies kept whole. scikit-learn's StratifiedGroupKFold
may leave a class out of a fold that could have had it, so the carving of splits draws folds too.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_transfer.data import stratification as carving
from keras_transfer.data.records import Record, Records, counted
from keras_transfer.errors import DataError, SpecError
from keras_transfer.specs import DataSpec
from keras_transfer.storage.class_names import hash_class_names

NAMES = ("train", "val", "test")
UNUSED = "unused"


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits:
    """Rows of `Records` by use: int64, ascending, disjoint; and how they were drawn.

    A fraction of None means that the split is the source's own. Rows that `data.train_size` left
    over are in none of the three.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    seed: int
    val_fraction: float | None
    test_fraction: float | None


def make_splits(records: Records, spec: DataSpec, *, seed: int) -> Splits:
    """Divide audited records into training, validation and test rows.

    Rows without a split in the source count as training rows until something is carved out.

    Raises:
        DataError: a class has too few images to be in every split, a group is in two of the
            source's splits, or `spec.train_size` does not fit.
        SpecError: the fractions leave nothing to train on.
    """
    labels = np.array(records.labels(), dtype=np.int64)
    split_of_row = np.array([record.split or carving.TRAIN for record in records.items])
    _check_groups(records.items)
    fractions = {
        name: fraction
        for name, fraction in (("test", spec.test_fraction), ("val", spec.val_fraction))
        if name not in split_of_row
    }
    if fractions:
        pool = np.flatnonzero(split_of_row == carving.TRAIN)
        split_of_row[pool] = carve_pool(records, pool, fractions, seed=seed)
    _check_every_class_in_every_split(records, labels, split_of_row)
    rows = {name: np.flatnonzero(split_of_row == name) for name in NAMES}
    val_fraction, test_fraction = fractions.get("val"), fractions.get("test")
    splits = Splits(**rows, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    return with_train_size(splits, records, spec.train_size)


def with_train_size(splits: Splits, records: Records, size: int | None) -> Splits:
    """The same splits with `size` training rows, stratified; None keeps them all.

    Drawn with the splits' seed: of the same splits, smaller choices are part of larger ones.

    Raises:
        DataError: there are fewer rows, or more classes.
    """
    if size is None:
        return splits
    _check_train_size(size, len(splits.train), len(records.class_names))
    labels = np.array(records.labels(), dtype=np.int64)[splits.train]
    chosen = carving.nested_subset(labels, size, np.random.default_rng([splits.seed, 1]))
    return dataclasses.replace(splits, train=splits.train[chosen])


def manifest(splits: Splits, records: Records) -> dict[str, Any]:
    """The splits as plain JSON values: every row by path, label, group and digest.

    `hash` is the SHA-256 of the sorted (split, label, digest) triples: it tells whether two runs
    saw the same images in the same roles, wherever the files lay.
    """
    rows = {name: getattr(splits, name).tolist() for name in NAMES}
    used = {row for part in rows.values() for row in part}
    rows[UNUSED] = [row for row in range(len(records.items)) if row not in used]
    entries = {name: [_entry(records.items[row]) for row in part] for name, part in rows.items()}
    counts = {name: Counter(entry["label"] for entry in part) for name, part in entries.items()}
    return {
        "seed": splits.seed,
        "val_fraction": splits.val_fraction,
        "test_fraction": splits.test_fraction,
        "class_names_hash": hash_class_names(records.class_names),
        "counts": {name: dict(sorted(count.items())) for name, count in counts.items()},
        "hash": _content_hash(entries),
        "rows": entries,
    }


def read_manifest(document: dict[str, Any], records: Records) -> Splits:
    """Find the manifest's rows among audited records, wherever their root lies now.

    Raises:
        DataError: the manifest was edited, or images, labels or classes are not those it lists.
    """
    entries: dict[str, list[dict[str, Any]]] = document["rows"]
    if document["hash"] != _content_hash(entries):
        raise DataError(
            "the split manifest does not agree with its own hash",
            expected=document["hash"],
            received=_content_hash(entries),
            fix="restore splits.json as the run wrote it, or start a new run",
        )
    row_of = {_identity(_entry(item)): row for row, item in enumerate(records.items)}
    listed = {_identity(entry) for part in entries.values() for entry in part}
    missing, added = sorted(listed - row_of.keys()), sorted(row_of.keys() - listed)
    same_classes = document["class_names_hash"] == hash_class_names(records.class_names)
    if missing or added or not same_classes:
        raise DataError(
            f"the images below {records.root} are not those that were split",
            expected=f"{len(listed)} images with the paths, labels and content of the manifest",
            received=_describe("changed or gone", missing) + ", " + _describe("new", added),
            fix="restore the images, or start a new run on them",
        )
    rows = {
        name: np.array(sorted(row_of[_identity(entry)] for entry in entries[name]), dtype=np.int64)
        for name in NAMES
    }
    return Splits(
        **rows,
        seed=document["seed"],
        val_fraction=document["val_fraction"],
        test_fraction=document["test_fraction"],
    )


def carve_pool(
    records: Records, pool: np.ndarray, fractions: dict[str, float], *, seed: int
) -> np.ndarray:
    """Divide some of the rows: the name of each one's split, str [len(pool)].

    Args:
        fractions: share of each split but training, which takes the rest.

    Raises:
        DataError: a class has too few images to be in every split.
        SpecError: the fractions leave nothing to train on.
    """
    if sum(fractions.values()) >= 1:
        raise SpecError(
            "data.val_fraction and data.test_fraction leave nothing to train on",
            expected="a sum below 1",
            received=" + ".join(f"{fraction:g}" for fraction in fractions.values()),
            fix="lower one of them",
        )
    items = [records.items[row] for row in pool]
    labels = np.array(records.labels(), dtype=np.int64)[pool]
    units = carving.find_units([item.digest for item in items], [item.group for item in items])
    counts = np.bincount(labels, minlength=len(records.class_names))
    num_units = carving.count_units(labels, units, len(records.class_names))
    needed = len(fractions) + 1
    for name, images, distinct in zip(records.class_names, counts, num_units, strict=True):
        if distinct < needed:
            raise DataError(
                f"class {name!r} has fewer files than splits",
                expected=f"at least {needed} images, one for each of train, "
                f"{', '.join(sorted(fractions))}",
                received=f"{counted(images, 'file', 'files')}; {distinct} without copies and "
                "members of one group",
                fix="add images of the class, or leave it out",
            )
    shares = carving.share_out(counts, fractions)
    return carving.carve(labels, units, shares, np.random.default_rng(seed))


def _check_groups(items: Iterable[Record]) -> None:
    first_seen: dict[str, Record] = {}
    for record in items:
        if record.group is None:
            continue
        first = first_seen.setdefault(record.group, record)
        if (first.split or carving.TRAIN) != (record.split or carving.TRAIN):
            raise DataError(
                f"group {record.group!r} is in two splits of the source",
                expected="all images of a group in one split",
                received=f"{first.path} in {first.split or carving.TRAIN}, "
                f"{record.path} in {record.split or carving.TRAIN}",
                fix="correct the split column, or leave it empty to have the splits drawn",
            )


def _check_every_class_in_every_split(
    records: Records, labels: np.ndarray, split_of_row: np.ndarray
) -> None:
    for split in NAMES:
        present = set(labels[split_of_row == split].tolist())
        for c, name in enumerate(records.class_names):
            if c not in present:
                raise DataError(
                    f"class {name!r} is missing from the {split} split",
                    expected="at least one image of every class in every split",
                    received=f"{counted(int((labels == c).sum()), 'image', 'images')} of the "
                    "class, all in other splits",
                    fix="add images of the class to the split, or leave it out of the source to "
                    "have one drawn; with groups, smaller groups help",
                )


def _check_train_size(size: int, num_rows: int, num_classes: int) -> None:
    if not num_classes <= size <= num_rows:
        raise DataError(
            f"data.train_size={size} does not fit the training split",
            expected=f"{num_classes} (one image a class) to {num_rows} (all there are)",
            received=str(size),
            fix="choose a number in between, or leave data.train_size out for all",
        )


def _entry(record: Record) -> dict[str, Any]:
    return {
        "path": record.path,
        "label": record.label,
        "group": record.group,
        "digest": record.digest,
    }


def _identity(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["path"], entry["label"], entry["digest"]


def _content_hash(entries: dict[str, list[dict[str, Any]]]) -> str:
    triples = sorted(
        (name, entry["label"], entry["digest"]) for name, part in entries.items() for entry in part
    )
    return hashlib.sha256(json.dumps(triples).encode()).hexdigest()


def _describe(what: str, identities: list[tuple[str, str, str]]) -> str:
    example = f" (such as {identities[0][0]})" if identities else ""
    return f"{len(identities)} {what}{example}"


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
        DataError: a class has too few images to be in every fold, or in every part of one, or
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
        DataError: a class has fewer images than there are folds.
    """
    items = [records.items[row] for row in pool]
    labels = np.array(records.labels(), np.int64)[pool]
    units = carving.find_units([item.digest for item in items], [item.group for item in items])
    counts = np.bincount(labels, minlength=len(records.class_names))
    num_units = carving.count_units(labels, units, len(records.class_names))
    for name, images, distinct in zip(records.class_names, counts, num_units, strict=True):
        if distinct < num_folds:
            raise DataError(
                f"class {name!r} is too small for {num_folds} folds",
                expected=f"at least {num_folds} images outside the test split, one for each fold",
                received=f"{counted(images, 'file', 'files')}; {distinct} without copies and "
                "members of one group",
                fix="lower folds, add images of the class, or leave it out",
            )
    generator = np.random.default_rng([seed, num_folds])
    return carving.carve(labels, units, _deal(counts, num_folds), generator).astype(np.int64)


def _deal(counts: np.ndarray, num_folds: int) -> dict[str, np.ndarray]:
    """How many images of each class every fold should get.

    Dealt like cards, one class after the other: folds differ by one image at most, in each
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
                f"class {name!r} is missing from the {part_names[part]} images of fold {fold + 1}",
                expected="at least one image of every class in every part of every fold",
                received=f"{counted(int((labels == min(absent)).sum()), 'image', 'images')} "
                "of the class, all in other parts",
                fix="lower folds, or make groups smaller",
            )
