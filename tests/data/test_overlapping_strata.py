"""Splits of images that belong to several strata at once."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from keras_transfer.data.datasets import epoch_order
from keras_transfer.data.records import Record, Records
from keras_transfer.data.splits import draw_folds, make_splits, with_train_size
from keras_transfer.data.targets import Targets
from keras_transfer.errors import DataError
from keras_transfer.specs import DataSpec

NAMES = ("common", "frequent", "rare", "none")


def make_records(num_rare: int) -> Records:
    """200 images with none to three of three labels; the last stratum are those with none."""
    generator = np.random.default_rng(0)
    labels = generator.random((200, 3)) < [0.6, 0.3, 0]
    labels[generator.permutation(200)[:num_rare], 2] = True
    strata = np.column_stack([labels, ~labels.any(axis=1)])
    targets = Targets(
        values=labels.astype(np.float32),
        names=NAMES[:3],
        strata=strata,
        strata_names=NAMES,
        kind="label",
    )
    items = tuple(Record(f"{row:03d}.png", ("",), digest=f"{row:064x}") for row in range(200))
    return Records(items, targets, Path("/nowhere"))


@pytest.mark.parametrize("num_rare", [3, 12])
def test_rare_strata_are_in_every_split_and_shares_are_kept(num_rare):
    records = make_records(num_rare)
    splits = make_splits(records, DataSpec(val_fraction=0.2, test_fraction=0.2), seed=0)
    rows = np.concatenate([splits.train, splits.val, splits.test])
    np.testing.assert_array_equal(np.sort(rows), np.arange(200))
    total = records.targets.strata.sum(axis=0)
    for part, share in ((splits.val, 0.2), (splits.test, 0.2), (splits.train, 0.6)):
        counts = records.targets.strata[part].sum(axis=0)
        assert counts.min() >= 1
        np.testing.assert_allclose(counts, share * total, atol=3)


def test_small_training_splits_are_nested_and_have_every_stratum():
    records = make_records(12)
    splits = make_splits(records, DataSpec(), seed=0)
    sizes = [with_train_size(splits, records, size).train for size in (4, 20, 60)]
    for smaller, larger in itertools.pairwise(sizes):
        assert set(smaller) < set(larger)
    for rows in sizes:
        assert records.targets.strata[rows].any(axis=0).all()


def test_every_fold_has_every_stratum():
    records = make_records(12)
    folds = draw_folds(records, np.arange(200), 4, seed=0)
    for fold in range(4):
        counts = records.targets.strata[folds == fold].sum(axis=0)
        np.testing.assert_allclose(counts, records.targets.strata.sum(axis=0) / 4, atol=3)
        assert counts.min() >= 1


def test_a_stratum_with_too_few_images_is_named_by_its_kind():
    with pytest.raises(DataError, match="label 'rare' has fewer files than splits"):
        make_splits(make_records(2), DataSpec(), seed=0)


def test_balanced_sampling_shows_no_view_twice_in_an_epoch():
    strata = make_records(12).targets.strata
    places, views = epoch_order(strata, 0, seed=0, sampling="balanced", num_views=None)
    assert len(places) == 200
    assert len(set(zip(places.tolist(), views.tolist(), strict=True))) == 200
