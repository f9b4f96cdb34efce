"""Splits and folds: the rows for training, validation and test, drawn once and saved.

A split that the source has is used unchanged. A missing one is drawn from the training rows:
stratified, seeded, with groups and exact copies kept together.

With folds, every image outside the test split is held out once. They are drawn by the same code
as splits, because scikit-learn's StratifiedGroupKFold can leave a class out of a fold needlessly.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_transfer.data import stratification
from keras_transfer.data.labels import suspect_task
from keras_transfer.data.records import Record, Records, counted
from keras_transfer.data.targets import Targets
from keras_transfer.errors import DataError, SpecError
from keras_transfer.specs import DataSpec
from keras_transfer.storage.class_names import hash_class_names

NAMES = ("train", "val", "test")
UNUSED = "unused"
_MOST_NAMED = 10


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits:
    """Rows of `Records` in each split (int64, ascending, disjoint), and how they were drawn.

    A fraction of None means that the split comes from the source. Rows that `data.train_size`
    leaves out are in none of the three.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    seed: int
    val_fraction: float | None
    test_fraction: float | None


def make_splits(records: Records, spec: DataSpec, *, seed: int) -> Splits:
    """Divide audited records into training, validation and test rows.

    Rows without a split in the source count as training rows; missing splits are drawn from these.

    Raises:
        DataError: a stratum has too few images to be in every split, a group is in two of the
            source's splits, or `spec.train_size` does not fit.
        SpecError: the fractions leave nothing to train on.
    """
    split_of_row, fractions = _own_splits(records, spec)
    if fractions:
        pool = np.flatnonzero(split_of_row == stratification.TRAIN)
        split_of_row[pool] = carve_pool(records, pool, fractions, seed=seed)
    _check_strata_in_splits(records.targets, split_of_row)
    rows = {name: np.flatnonzero(split_of_row == name) for name in NAMES}
    val_fraction, test_fraction = fractions.get("val"), fractions.get("test")
    splits = Splits(**rows, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    return with_train_size(splits, records, spec.train_size)


def check_splits(records: Records, spec: DataSpec) -> None:
    """Check, before any image is read, what `make_splits` will find: copies are not known yet.

    Raises:
        DataError, SpecError: see `make_splits`.
    """
    split_of_row, fractions = _own_splits(records, spec)
    pool = np.flatnonzero(split_of_row == stratification.TRAIN)
    if fractions:
        _check_pool(records.targets.take(pool), _units(records, pool), fractions)
    _check_strata_in_splits(
        records.targets, split_of_row, [name for name in NAMES if name not in fractions]
    )


def _own_splits(records: Records, spec: DataSpec) -> tuple[np.ndarray, dict[str, float]]:
    """The source's split of every row, str [N], and the fractions of those that it lacks."""
    split_of_row = np.array([record.split or stratification.TRAIN for record in records.items])
    _check_groups(records.items)
    fractions = {"test": spec.test_fraction, "val": spec.val_fraction}
    return split_of_row, {k: share for k, share in fractions.items() if k not in split_of_row}


def with_train_size(splits: Splits, records: Records, size: int | None) -> Splits:
    """The same splits with `size` training rows, stratified; None keeps them all.

    Drawn with the seed of the splits: a smaller choice is a subset of a larger one.

    Raises:
        DataError: there are fewer rows, or more strata.
    """
    if size is None:
        return splits
    targets = records.targets.take(splits.train)
    _check_train_size(size, targets)
    chosen = stratification.nested_subset(
        targets.strata, size, np.random.default_rng([splits.seed, 1])
    )
    return dataclasses.replace(splits, train=splits.train[chosen])


def manifest(splits: Splits, records: Records) -> dict[str, Any]:
    """The splits as plain JSON values, with all that a record has for every row.

    `hash` is the SHA-256 of the sorted (split, label, digest) triples: two runs with the same
    images in the same splits have the same hash, whatever the folders are called.
    """
    rows = {name: getattr(splits, name).tolist() for name in NAMES}
    used = {row for part in rows.values() for row in part}
    rows[UNUSED] = [row for row in range(len(records.items)) if row not in used]
    entries = {
        name: [_entry(row, records.items[row]) for row in part] for name, part in rows.items()
    }
    counts = {
        name: _count(records.targets.take(np.array(part, int))) for name, part in rows.items()
    }
    return {
        "seed": splits.seed,
        "val_fraction": splits.val_fraction,
        "test_fraction": splits.test_fraction,
        "class_names_hash": hash_class_names(records.targets.names),
        "counts": counts,
        "hash": _content_hash(entries),
        "rows": entries,
    }


def read_manifest(document: dict[str, Any]) -> tuple[tuple[Record, ...], Splits]:
    """The images of a manifest in the order of their rows, as they were listed, and the splits.

    Raises:
        DataError: the manifest was edited, or is damaged.
    """
    try:
        entries: dict[str, list[dict[str, Any]]] = document["rows"]
        listed = sorted(itertools.chain(*entries.values()), key=lambda entry: entry["row"])
        expected, received = document["hash"], _content_hash(entries)
        if [entry["row"] for entry in listed] != list(range(len(listed))):
            received = "rows that are missing or listed twice"
        items = tuple(map(_record, listed))
        if [item.label for item in items] != [entry["label"] for entry in listed]:
            received = "targets that differ from the labels"
        fields = {name: document[name] for name in ("seed", "val_fraction", "test_fraction")}
        for name in NAMES:
            fields[name] = np.array([entry["row"] for entry in entries[name]], np.int64)
    except (KeyError, TypeError, AttributeError) as error:
        expected, received = "the manifest of a run", f"no {error}"
    if expected != received:
        raise DataError(
            "splits.json does not agree with its own hash",
            expected=expected,
            received=received,
            fix="restore the original splits.json, or start a new run",
        )
    return items, Splits(**fields)


def _record(entry: dict[str, Any]) -> Record:
    return Record(
        path=entry["path"],
        target=tuple(entry["target"]),
        split=entry["source_split"],
        group=entry["group"],
        digest=entry["digest"],
    )


def _count(targets: Targets) -> dict[str, int]:
    """Number of images of every stratum that occurs, by name."""
    counts = zip(targets.strata_names, targets.strata.sum(axis=0).tolist(), strict=True)
    return dict(sorted((name, count) for name, count in counts if count))


def carve_pool(
    records: Records, pool: np.ndarray, fractions: dict[str, float], *, seed: int
) -> np.ndarray:
    """Divide some of the rows: the name of each one's split, str [len(pool)].

    Args:
        fractions: share of each split but training, which takes the rest.

    Raises:
        DataError: a stratum has too few images to be in every split.
        SpecError: the fractions leave nothing to train on.
    """
    targets, units = records.targets.take(pool), _units(records, pool)
    _check_pool(targets, units, fractions)
    shares = stratification.share_out(targets.strata.sum(axis=0), fractions)
    return stratification.carve(targets.strata, units, shares, np.random.default_rng(seed))


def _check_pool(targets: Targets, units: np.ndarray, fractions: dict[str, float]) -> None:
    if sum(fractions.values()) >= 1:
        raise SpecError(
            "data.val_fraction and data.test_fraction leave nothing to train on",
            expected="a sum below 1",
            received=" + ".join(f"{fraction:g}" for fraction in fractions.values()),
            fix="lower one of them",
        )
    needed = len(fractions) + 1
    if small := _small_strata(targets, units, needed):
        raise DataError(
            f"{_name_strata(targets, small)} fewer files than splits",
            expected=f"at least {needed} images, one for each of train, "
            f"{', '.join(sorted(fractions))}",
            received="".join(f"\n    {each.describe()}" for each in small[:_MOST_NAMED]),
            fix=_fix_of_small(targets, needed, len(small)),
        )


def _units(records: Records, pool: np.ndarray) -> np.ndarray:
    """The unit of every pool row: exact copies and groups stay together."""
    items = [records.items[row] for row in pool]
    return stratification.find_units(
        [item.digest for item in items], [item.group for item in items]
    )


def _name_strata(targets: Targets, small: Sequence["_Small"]) -> str:
    """All of them with the verb, such as "class 'a' has"; long lists are cut."""
    names = ", ".join(repr(each.name) for each in small[:_MOST_NAMED])
    if len(small) == 1:
        return f"{targets.kind} {names} has"
    more = f" and {len(small) - _MOST_NAMED} more" if len(small) > _MOST_NAMED else ""
    kinds = "classes" if targets.kind == "class" else f"{targets.kind}s"
    return f"{len(small)} {kinds}, {names}{more}, have"


def _fix_of_small(targets: Targets, needed: int, num_small: int) -> str:
    fix = f"add images of the {targets.kind}, or remove it"
    if num_small > 1:
        fix = "add images of them, or remove them"
    if targets.kind != "class":
        return fix
    fix += (
        f"; data.min_per_class={needed} leaves such classes out, and data.rare_classes=join joins "
        "them into one"
    )
    return "; ".join([fix, *suspect_task(targets.strata_names)])


@dataclass(frozen=True)
class _Small:
    """A stratum with too few images: `num_units` of them without copies and groups."""

    name: str
    num_images: int
    num_units: int

    def describe(self) -> str:
        text = f"{self.name!r}: {counted(self.num_images, 'file', 'files')}"
        if self.num_units == self.num_images:
            return text
        return f"{text}, {self.num_units} without copies and members of one group"


def _small_strata(targets: Targets, units: np.ndarray, needed: int) -> list[_Small]:
    """The strata with fewer units than `needed`."""
    counts = targets.strata.sum(axis=0).tolist()
    num_units = stratification.count_units(targets.strata, units).tolist()
    all_strata = map(_Small, targets.strata_names, counts, num_units)
    return [stratum for stratum in all_strata if stratum.num_units < needed]


def _check_groups(items: Iterable[Record]) -> None:
    first_seen: dict[str, Record] = {}
    for record in items:
        if record.group is None:
            continue
        first = first_seen.setdefault(record.group, record)
        if (first.split or stratification.TRAIN) != (record.split or stratification.TRAIN):
            raise DataError(
                f"group {record.group!r} is in two splits of the source",
                expected="all images of a group in one split",
                received=f"{first.path} in {first.split or stratification.TRAIN}, "
                f"{record.path} in {record.split or stratification.TRAIN}",
                fix="correct the split column, or leave it empty to have the splits drawn",
            )


def _check_strata_in_splits(
    targets: Targets, split_of_row: np.ndarray, splits: Sequence[str] = NAMES
) -> None:
    """Raise DataError with all strata that are missing from one of the splits."""
    kind, found = targets.kind, []
    for split in splits:
        for name, count in _absent(targets, np.flatnonzero(split_of_row == split)):
            images = counted(count, "image", "images")
            found.append((f"{kind} {name!r} is missing from the {split} split", images))
    if found:
        raise DataError(
            "; ".join(what for what, _ in found[:_MOST_NAMED]),
            expected=f"at least one image of every {kind} in every split",
            received=f"{', '.join(images for _, images in found[:_MOST_NAMED])} of "
            f"{'it' if len(found) == 1 else 'them'}, all in other splits",
            fix=f"add images of the {kind} to the split, or leave it out of the source to "
            "have one drawn; with groups, smaller groups help",
        )


def _absent(targets: Targets, rows: np.ndarray) -> list[tuple[str, int]]:
    """Names of the strata that these rows lack, and how many images each has in all."""
    absent = np.flatnonzero(~targets.strata[rows].any(axis=0))
    return [(targets.strata_names[s], int(targets.strata[:, s].sum())) for s in absent]


def _check_train_size(size: int, targets: Targets) -> None:
    num_strata = len(targets.strata_names)
    if not num_strata <= size <= len(targets):
        raise DataError(
            f"data.train_size={size} does not fit the training split",
            expected=f"{num_strata} (one image a {targets.kind}) to {len(targets)} (all there are)",
            received=str(size),
            fix="choose a number in between, or leave data.train_size out for all",
        )


def _entry(row: int, record: Record) -> dict[str, Any]:
    return {
        "row": row,
        "path": record.path,
        "label": record.label,
        "target": list(record.target),
        "source_split": record.split,
        "group": record.group,
        "digest": record.digest,
    }


def _content_hash(entries: dict[str, list[dict[str, Any]]]) -> str:
    triples = sorted(
        (name, entry["label"], entry["digest"]) for name, part in entries.items() for entry in part
    )
    return hashlib.sha256(json.dumps(triples).encode()).hexdigest()


def make_folds(
    records: Records, spec: DataSpec, apart: np.ndarray, *, num_folds: int, seed: int
) -> tuple[Splits, ...]:
    """Divide audited records into folds; each result uses another fold as its test split.

    Of the other folds' rows, a share of `spec.val_fraction` is for validation and the rest for
    training (`spec.train_size` of them if set). A validation split of the source is not kept.

    Args:
        apart: rows of the test split, which are in no fold.
        num_folds: 2 or more.

    Raises:
        DataError: a stratum has too few images to be in every fold, or in every part of one, or
            `spec.train_size` does not fit.
    """
    pool = np.setdiff1d(np.arange(len(records.items)), apart)
    fold_of_row = draw_folds(records, pool, num_folds, seed=seed)
    results = []
    for fold in range(num_folds):
        held_out, rest = pool[fold_of_row == fold], pool[fold_of_row != fold]
        split_of_row = carve_pool(records, rest, {"val": spec.val_fraction}, seed=seed)
        rows = {name: rest[split_of_row == name] for name in ("train", "val")} | {"test": held_out}
        _check_strata_in_fold(records.targets, rows, fold)
        splits = Splits(
            **rows, seed=seed, val_fraction=spec.val_fraction, test_fraction=1 / num_folds
        )
        results.append(with_train_size(splits, records, spec.train_size))
    return tuple(results)


def draw_folds(records: Records, pool: np.ndarray, num_folds: int, *, seed: int) -> np.ndarray:
    """The fold of every pool row, int64 from 0; groups and exact copies stay together.

    Raises:
        DataError: a stratum has fewer images than there are folds.
    """
    targets, units = records.targets.take(pool), _units(records, pool)
    if small := _small_strata(targets, units, num_folds):
        raise DataError(
            f"{_name_strata(targets, small)} too few files for {num_folds} folds",
            expected=f"at least {num_folds} images outside the test split, one for each fold",
            received="".join(f"\n    {each.describe()}" for each in small[:_MOST_NAMED]),
            fix=f"lower folds, or {_fix_of_small(targets, num_folds, len(small))}",
        )
    generator = np.random.default_rng([seed, num_folds])
    shares = _deal(targets.strata.sum(axis=0), num_folds)
    return stratification.carve(targets.strata, units, shares, generator).astype(np.int64)


def _deal(counts: np.ndarray, num_folds: int) -> dict[str, np.ndarray]:
    """How many images of each stratum every fold should get.

    Folds differ by one image at most, in each stratum and in total.
    """
    ends = np.cumsum(counts)
    dealt = {}
    for fold in range(num_folds):
        up_to_end, up_to_start = (
            (edges - fold + num_folds - 1) // num_folds for edges in (ends, ends - counts)
        )
        dealt[str(fold)] = up_to_end - up_to_start
    return dealt


def _check_strata_in_fold(targets: Targets, rows: dict[str, np.ndarray], fold: int) -> None:
    kind = targets.kind
    part_names = dict(zip(NAMES, ("training", "validation", "held-out"), strict=True))
    for part, members in rows.items():
        if absent := _absent(targets, members):
            name, count = absent[0]
            raise DataError(
                f"{kind} {name!r} is missing from the {part_names[part]} images of fold {fold + 1}",
                expected=f"at least one image of every {kind} in every part of every fold",
                received=f"{counted(count, 'image', 'images')} of the {kind}, all in other parts",
                fix="lower folds, or make groups smaller",
            )
