"""Splits are stratified, repeatable, whole in their groups, and cannot be mixed up later."""

import copy
import dataclasses
import hashlib
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from labelled import read_records, records_of
from sklearn.model_selection import StratifiedGroupKFold

from keras_transfer.data.audit import audit
from keras_transfer.data.records import Record, Records
from keras_transfer.data.splits import Splits, make_splits, manifest, read_manifest
from keras_transfer.errors import DataError, SpecError
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import DataSpec
from keras_transfer.storage.cache import Cache

NAMES = ("train", "val", "test")


def digest(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def make_records(labels, *, splits=None, groups=None, digests=None) -> Records:
    """Records as the audit leaves them, without any file."""
    items = tuple(
        Record(
            path=f"{label}/{row:06d}.png",
            target=(str(label),),
            split=splits[row] if splits else None,
            group=groups[row] if groups else None,
            digest=digests[row] if digests else digest(row),
        )
        for row, label in enumerate(labels)
    )
    return records_of(items, Path("/nowhere"))


def rows_of(splits: Splits) -> dict[str, list[int]]:
    return {name: getattr(splits, name).tolist() for name in NAMES}


def counts(records: Records, splits: Splits) -> dict[str, Counter]:
    return {
        name: Counter(records.items[row].label for row in rows)
        for name, rows in rows_of(splits).items()
    }


def test_make_splits_draws_exact_fractions_of_every_class():
    records = make_records(["a"] * 400 + ["b"] * 100 + ["c"] * 20)
    splits = make_splits(records, DataSpec(val_fraction=0.1, test_fraction=0.25), seed=0)
    assert counts(records, splits) == {
        "train": {"a": 260, "b": 65, "c": 13},
        "val": {"a": 40, "b": 10, "c": 2},
        "test": {"a": 100, "b": 25, "c": 5},
    }
    everything = sorted(row for rows in rows_of(splits).values() for row in rows)
    assert everything == list(range(520))
    for rows in (splits.train, splits.val, splits.test):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()


def test_make_splits_hits_the_total_even_where_classes_do_not_divide():
    records = make_records([name for name in "abcdefg" for _ in range(11)])
    splits = make_splits(records, DataSpec(val_fraction=0.2, test_fraction=0.2), seed=3)
    assert (len(splits.val), len(splits.test)) == (round(0.2 * 77), round(0.2 * 77))
    for count in (counts(records, splits)["val"], counts(records, splits)["test"]):
        assert set(count.values()) <= {2, 3}


def test_make_splits_repeats_with_the_seed_and_changes_with_it():
    records = make_records(["a"] * 50 + ["b"] * 50)
    first, again, other = (make_splits(records, DataSpec(), seed=seed) for seed in (5, 5, 6))
    assert rows_of(first) == rows_of(again)
    assert rows_of(first)["test"] != rows_of(other)["test"]


def test_make_splits_draws_every_image_equally_often():
    records = make_records(["a"] * 20 + ["b"] * 20)
    spec = DataSpec(val_fraction=0.2, test_fraction=0.3)
    tested = np.zeros(40)
    for seed in range(400):
        tested[make_splits(records, spec, seed=seed).test] += 1
    # Binomial, 400 draws at 0.3: five standard deviations either way.
    assert np.abs(tested - 120).max() < 5 * np.sqrt(400 * 0.3 * 0.7)


def test_make_splits_puts_small_classes_into_every_split():
    records = make_records(["many"] * 1000 + ["few"] * 3 + ["some"] * 5)
    splits = make_splits(records, DataSpec(val_fraction=0.1, test_fraction=0.1), seed=0)
    assert {name: count["few"] for name, count in counts(records, splits).items()} == dict.fromkeys(
        NAMES, 1
    )
    assert counts(records, splits)["train"]["some"] == 3


@pytest.mark.parametrize("copies", [False, True])
def test_a_class_with_fewer_files_than_splits_is_refused(copies):
    labels = ["a"] * 10 + ["rare"] * (5 if copies else 2)
    digests = [
        digest("same" if label == "rare" and row > 10 else row) for row, label in enumerate(labels)
    ]
    with pytest.raises(DataError, match="'rare' has fewer files than splits") as raised:
        make_splits(make_records(labels, digests=digests), DataSpec(), seed=0)
    assert "at least 3" in raised.value.expected
    assert f"{5 if copies else 2} files" in raised.value.received
    assert raised.value.fix


def test_make_splits_keeps_the_splits_of_the_source():
    labels = list("abab" * 3)
    own = ["train"] * 4 + ["val"] * 4 + ["test"] * 4
    splits = make_splits(make_records(labels, splits=own), DataSpec(), seed=9)
    assert rows_of(splits) == {"train": [0, 1, 2, 3], "val": [4, 5, 6, 7], "test": [8, 9, 10, 11]}
    assert (splits.val_fraction, splits.test_fraction) == (None, None)


def test_make_splits_carves_only_what_the_source_lacks():
    labels = list("ab" * 60)
    own = ["test" if row < 20 else "train" if row < 60 else None for row in range(120)]
    records = make_records(labels, splits=own)
    splits = make_splits(records, DataSpec(val_fraction=0.2), seed=0)
    assert splits.test.tolist() == list(range(20))
    assert counts(records, splits)["val"] == {"a": 10, "b": 10}
    assert (splits.val_fraction, splits.test_fraction) == (0.2, None)


def test_a_class_missing_from_a_split_of_the_source_is_refused():
    own = ["train", "train", "val", "test", "test"]
    with pytest.raises(DataError, match="class 'b' is missing from the val split") as raised:
        make_splits(make_records("abaab", splits=own), DataSpec(), seed=0)
    assert "2 images" in raised.value.received


def test_fractions_that_leave_no_training_are_refused():
    spec = DataSpec(val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(SpecError, match=r"data\.val_fraction"):
        make_splits(make_records("ab" * 20), spec, seed=0)


def split_of(splits: Splits) -> dict[int, str]:
    return {row: name for name, rows in rows_of(splits).items() for row in rows}


@pytest.mark.parametrize("seed", range(3))
def test_make_splits_keeps_groups_whole_and_classes_in_proportion(seed):
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(200), generator.integers(1, 12, 200))
    labels = np.array(list("abc"))[generator.choice(3, 200, p=[0.6, 0.3, 0.1])][groups]
    records = make_records(labels.tolist(), groups=[f"g{group}" for group in groups])
    spec = DataSpec(val_fraction=0.2, test_fraction=0.2)
    where = split_of(make_splits(records, spec, seed=seed))
    assert all(len({where[row] for row in np.flatnonzero(groups == g)}) == 1 for g in range(200))

    # No worse than the fold of the same size that scikit-learn draws.
    folds = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=seed)
    _, fold = next(folds.split(labels, labels, groups))
    shares = np.array([np.mean(labels == name) for name in "abc"]) * 0.2 * len(labels)
    theirs = sum(
        abs((labels[fold] == name).sum() - want) for name, want in zip("abc", shares, strict=True)
    )
    for split in ("val", "test"):
        rows = np.array([row for row, name in where.items() if name == split])
        ours = sum(
            abs((labels[rows] == name).sum() - want)
            for name, want in zip("abc", shares, strict=True)
        )
        assert ours <= max(theirs, 4)


def test_make_splits_serves_every_split_when_a_class_has_three_groups():
    labels = ["a"] * 30 + ["b"] * 100
    groups = [f"a{row // 10}" for row in range(30)] + [None] * 100
    records = make_records(labels, groups=groups)
    splits = make_splits(records, DataSpec(), seed=0)
    assert {name: count["a"] for name, count in counts(records, splits).items()} == dict.fromkeys(
        NAMES, 10
    )


def test_a_class_in_fewer_groups_than_splits_is_refused():
    labels = ["a"] * 30 + ["b"] * 100
    groups = [f"a{row // 15}" for row in range(30)] + [None] * 100
    with pytest.raises(DataError, match="'a' has fewer files than splits") as raised:
        make_splits(make_records(labels, groups=groups), DataSpec(), seed=0)
    assert "2 without copies" in raised.value.received


def test_several_rare_classes_have_a_line_each():
    records = make_records(["many"] * 40 + list("abcdef"))
    with pytest.raises(DataError, match="6 classes, 'a', 'b', 'c', 'd', 'e', 'f', have") as raised:
        make_splits(records, DataSpec(), seed=0)
    lines = raised.value.received.split("\n")[1:]
    assert [line.strip() for line in lines] == [f"{name!r}: 1 file" for name in "abcdef"]
    assert "add images of them, or remove them" in raised.value.fix


def test_a_group_in_two_splits_of_the_source_is_refused():
    records = make_records(
        "abab", splits=["train", "train", "test", "test"], groups=["g", None, "g", None]
    )
    with pytest.raises(DataError, match="group 'g' is in two splits") as raised:
        make_splits(records, DataSpec(), seed=0)
    assert "a/000000.png in train" in raised.value.received
    assert "a/000002.png in test" in raised.value.received


def test_make_splits_keeps_exact_copies_together():
    digests = [digest(row // 4) for row in range(400)]
    records = make_records(["a"] * 200 + ["b"] * 200, digests=digests)
    for seed in range(3):
        where = split_of(make_splits(records, DataSpec(), seed=seed))
        assert all(len({where[4 * unit + k] for k in range(4)}) == 1 for unit in range(100))


def test_make_splits_keeps_groups_together_that_a_copy_connects():
    labels, groups = ["a", "b"] * 50, [f"g{row // 2}" for row in range(100)]
    digests = [digest("shared" if row in (0, 50, 98) else row) for row in range(100)]
    where = split_of(
        make_splits(make_records(labels, groups=groups, digests=digests), DataSpec(), seed=1)
    )
    assert len({where[row] for row in (0, 1, 50, 51, 98, 99)}) == 1


def test_train_size_keeps_nested_stratified_subsets():
    records = make_records(["a"] * 600 + ["b"] * 300 + ["c"] * 30)
    whole = make_splits(records, DataSpec(), seed=2)
    smaller: set[int] = set()
    for size in (3, 10, 31, 100, 400):
        splits = make_splits(records, DataSpec(train_size=size), seed=2)
        rows = set(splits.train.tolist())
        assert len(rows) == size
        assert smaller <= rows <= set(whole.train.tolist())
        assert splits.test.tolist() == whole.test.tolist()
        assert splits.val.tolist() == whole.val.tolist()
        smaller = rows
        share = counts(records, splits)["train"]
        for name, part in (("a", 600 / 930), ("b", 300 / 930), ("c", 30 / 930)):
            assert share[name] >= 1
            assert abs(share[name] - part * size) <= 2


@pytest.mark.parametrize("size", [1, 1000])
def test_train_size_that_does_not_fit_is_refused(size):
    with pytest.raises(DataError, match=rf"data\.train_size={size}") as raised:
        make_splits(make_records("ab" * 50), DataSpec(train_size=size), seed=0)
    assert raised.value.expected.startswith("2 (one image a class) to 70")


def test_make_splits_takes_seconds_at_most_for_many_thousand_images():
    records = make_records([f"class{row % 100:03d}" for row in range(25_000)])
    start = time.process_time()
    splits = make_splits(records, DataSpec(), seed=0)
    assert time.process_time() - start < 3
    assert (len(splits.val), len(splits.test)) == (3_750, 3_750)


def audited_digits(folder: Path, tmp_path: Path) -> Records:
    spec = DataSpec(path=str(folder), image_size=8)
    cache = Cache(tmp_path / "store")
    return audit(read_records(spec), spec, cache=cache, reporter=SilentReporter()).records


def test_manifest_brings_back_records_and_splits(digits_folder, tmp_path):
    records = audited_digits(digits_folder, tmp_path)
    splits = make_splits(records, DataSpec(train_size=100), seed=4)
    document = json.loads(json.dumps(manifest(splits, records)))
    listed, found = read_manifest(document)
    assert listed == records.items
    assert rows_of(found) == rows_of(splits)
    assert (found.seed, found.val_fraction, found.test_fraction) == (4, 0.15, 0.15)


def test_manifest_lists_every_image_once_with_its_counts():
    records = make_records("ab" * 30, groups=[f"g{row // 3}" for row in range(60)])
    splits = make_splits(records, DataSpec(train_size=20), seed=0)
    document = manifest(splits, records)
    paths = [entry["path"] for part in document["rows"].values() for entry in part]
    assert sorted(paths) == sorted(record.path for record in records.items)
    assert sum(document["counts"]["train"].values()) == 20
    assert len(document["rows"]["unused"]) == 60 - 20 - len(splits.val) - len(splits.test)
    row = splits.val[0]
    assert document["rows"]["val"][0] == {
        "row": row,
        "target": list(records.items[row].target),
        "source_split": None,
        "path": records.items[row].path,
        "label": records.items[row].label,
        "group": f"g{row // 3}",
        "digest": records.items[row].digest,
    }


def test_manifest_hash_depends_on_content_and_roles_alone():
    records = make_records("ab" * 30)
    splits = make_splits(records, DataSpec(), seed=0)
    renamed = dataclasses.replace(
        records,
        items=tuple(dataclasses.replace(item, path=f"x{item.path}") for item in records.items),
    )
    swapped = dataclasses.replace(splits, val=splits.test, test=splits.val)
    assert manifest(splits, renamed)["hash"] == manifest(splits, records)["hash"]
    assert manifest(swapped, records)["hash"] != manifest(splits, records)["hash"]


def move_an_image(document):
    document["rows"]["test"].append(document["rows"]["train"].pop())


def drop_an_image(document):
    document["rows"]["unused"] = document["rows"]["train"][:0]
    document["rows"]["train"].pop()


def relabel(document):
    document["rows"]["val"][0]["label"] = "b" if document["rows"]["val"][0]["label"] == "a" else "a"


def retarget(document):
    document["rows"]["val"][0]["target"] = ["other"]


def number_twice(document):
    document["rows"]["val"][0]["row"] = document["rows"]["train"][0]["row"]


def drop_a_field(document):
    del document["rows"]["train"][3]["digest"]


def drop_the_rows(document):
    del document["rows"]


def spoil(document):
    document["rows"] = [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        move_an_image,
        drop_an_image,
        relabel,
        retarget,
        number_twice,
        drop_a_field,
        drop_the_rows,
        spoil,
    ],
)
def test_read_manifest_refuses_an_edited_manifest(change):
    records = make_records("ab" * 30)
    document = copy.deepcopy(manifest(make_splits(records, DataSpec(), seed=0), records))
    change(document)
    with pytest.raises(DataError, match="own hash"):
        read_manifest(document)
