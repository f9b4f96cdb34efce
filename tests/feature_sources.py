"""Digits as a source of features, their cuts and a store, for tests that extract."""

import hashlib
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from keras_transfer.data.datasets import Examples
from keras_transfer.data.splits import Splits
from keras_transfer.features.extraction import Tally, extract
from keras_transfer.features.source import Features, Request, Source
from keras_transfer.models.classifier import Classifier
from keras_transfer.models.cuts import Cut, find_cut
from keras_transfer.reporting.reporter import Silent
from keras_transfer.specs import CacheSpec, PhaseSpec, ViewSpec
from keras_transfer.storage.cache import Store
from keras_transfer.storage.entry import Recipe
from keras_transfer.training.phases import apply_phase

PIXELS = Recipe(
    kind="pixels", title="32 px", content={"size": 32}, shape=(32, 32, 3), dtype="uint8"
)
EXACT = CacheSpec(dtype="float32", precision="float32")


def make_source(num_pictures: int = 160, views: ViewSpec | None = None) -> Source:
    """Scans of handwritten digits, enlarged to 32 px."""
    scans = load_digits()
    pixels = np.kron(scans.images[:num_pictures], np.ones((4, 4))) * (255 / 16)
    pixels = np.repeat(np.uint8(pixels)[..., None], 3, axis=-1)
    return source_of(pixels, scans.target[:num_pictures].astype(np.int64), views or ViewSpec())


def source_of(pixels: np.ndarray, labels: np.ndarray, views: ViewSpec) -> Source:
    """Pictures as if each were a file of its own."""
    digests = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pixels]
    ids = np.asarray([int(digest[:16], 16) >> 1 for digest in digests], np.int64)
    return Source(Examples(pixels, labels, ids, 10), digests, views, PIXELS)


def make_splits() -> Splits:
    """96 training, 32 validation and 32 test pictures."""
    rows = np.arange(160, dtype=np.int64)
    fractions = {"val_fraction": 0.2, "test_fraction": 0.2}
    return Splits(train=rows[:96], val=rows[96:128], test=rows[128:], seed=0, **fractions)


def cut_at(classifier: Classifier, unfreeze: str) -> Cut:
    """The cut of a phase that unfreezes from this stage."""
    apply_phase(classifier, PhaseSpec(unfreeze=unfreeze))
    cut = find_cut(classifier.model)
    assert cut is not None
    return cut


def wanted(num_pictures: int, num_views: int) -> np.ndarray:
    """All views of all pictures, int64 [N, 2]."""
    rows, views = np.mgrid[:num_pictures, :num_views]
    return np.stack([rows.ravel(), views.ravel()], axis=1)


def extract_all(
    cut: Cut, source: Source, folder: Path, *, num_views: int = 2, cache: CacheSpec = EXACT
) -> tuple[Features, Tally]:
    """Features of all pictures at one cut."""
    request = Request(cut, wanted(len(source.digests), num_views))
    (features,), tally = extract(
        [request], source, cache=cache, store=Store(folder), narrator=Silent()
    )
    return features, tally
