"""Digits as a source of features, their cuts and a cache, for tests that extract."""

import hashlib
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from keras_transfer.data.datasets import Examples
from keras_transfer.data.splits import Splits
from keras_transfer.data.targets import Targets
from keras_transfer.features.extraction import ExtractionStats, extract
from keras_transfer.features.source import Features, Request, Source
from keras_transfer.models.classifier import Classifier
from keras_transfer.models.cuts import Cut, find_cut
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, PhaseSpec, ViewSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.entry import CacheKey
from keras_transfer.training.phases import apply_phase

PIXELS = CacheKey(
    kind="pixels", title="32 px", content={"size": 32}, shape=(32, 32, 3), dtype="uint8"
)
EXACT = CacheSpec(dtype="float32", precision="float32")


def make_source(num_images: int = 160, views: ViewSpec | None = None) -> Source:
    """Scans of handwritten digits, enlarged to 32 px."""
    scans = load_digits()
    pixels = np.kron(scans.images[:num_images], np.ones((4, 4))) * (255 / 16)
    pixels = np.repeat(np.uint8(pixels)[..., None], 3, axis=-1)
    return source_of(pixels, scans.target[:num_images].astype(np.int64), views or ViewSpec())


def source_of(pixels: np.ndarray, labels: np.ndarray, views: ViewSpec) -> Source:
    """Images as if each were a file of its own."""
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
    ids = np.asarray([int(digest[:16], 16) >> 1 for digest in digests], np.int64)
    return Source(
        Examples(pixels, Targets.of_classes(labels, "0123456789"), ids), digests, views, PIXELS
    )


def make_splits() -> Splits:
    """96 training, 32 validation and 32 test images."""
    rows = np.arange(160, dtype=np.int64)
    fractions = {"val_fraction": 0.2, "test_fraction": 0.2}
    return Splits(train=rows[:96], val=rows[96:128], test=rows[128:], seed=0, **fractions)


def cut_at(classifier: Classifier, unfreeze: str) -> Cut:
    """The cut of a phase that unfreezes from this stage."""
    apply_phase(classifier, PhaseSpec(unfreeze=unfreeze))
    cut = find_cut(classifier.model)
    assert cut is not None
    return cut


def wanted(num_images: int, num_views: int) -> np.ndarray:
    """All views of all images, int64 [N, 2]."""
    rows, views = np.mgrid[:num_images, :num_views]
    return np.stack([rows.ravel(), views.ravel()], axis=1)


def extract_all(
    cut: Cut, source: Source, folder: Path, *, num_views: int = 2, cache_spec: CacheSpec = EXACT
) -> tuple[Features, ExtractionStats]:
    """Features of all images at one cut."""
    request = Request(cut, wanted(len(source.digests), num_views))
    (features,), stats = extract(
        [request], source, cache_spec=cache_spec, cache=Cache(folder), reporter=SilentReporter()
    )
    return features, stats
