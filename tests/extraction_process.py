"""An extraction in a process of its own, to be killed by tests."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from keras_transfer.devices import speed_up_imports

speed_up_imports()

import numpy as np
from feature_sources import EXACT, PIXELS, cut_at, make_source, wanted
from small_backbone import SMALL
from small_models import make_classifier

from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.data.datasets import Examples
from keras_transfer.data.targets import Targets
from keras_transfer.devices.memory import peak_mb
from keras_transfer.features.extraction import extract
from keras_transfer.features.source import Request, Source
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, ViewSpec
from keras_transfer.storage.cache import Cache

NUM_IMAGES = 320
SHARD_BYTES = 75_000
"""Of small shards, so that there are many moments between two of them."""

BACKBONES[SMALL.name] = SMALL


def run(folder: str, result: str) -> None:
    """Extract at two cuts of one network; with views of every image at one of them."""
    classifier, source = make_classifier(), make_source(NUM_IMAGES)
    cuts = [cut_at(classifier, "head"), cut_at(classifier, "stage2")]
    pairs = [wanted(NUM_IMAGES, 1), wanted(NUM_IMAGES, 3)]
    requests = [Request(cut, rows) for cut, rows in zip(cuts, pairs, strict=True)]
    features, stats = extract(
        requests,
        source,
        cache_spec=EXACT,
        cache=Cache(Path(folder)),
        reporter=SilentReporter(),
        shard_bytes=SHARD_BYTES,
    )
    arrays = {str(number): np.asarray(item.rows) for number, item in enumerate(features)}
    np.savez(result, computed=stats.num_computed, **arrays)


def run_many(num_images: int, folder: str, result: str) -> None:
    """Extract a map of 4,096 numbers from each of many images; keep the peak of memory."""
    generator = np.random.default_rng(0)
    cache = Cache(Path(folder))
    keys = [f"{number:064x}" for number in range(num_images)]
    with cache.opened(PIXELS) as (entry,):
        for start in range(0, num_images, 1000):
            chunk = keys[start : start + 1000]
            entry.append(chunk, generator.integers(0, 256, (len(chunk), 32, 32, 3), np.uint8))
        pixels = entry.rows(keys)
    targets = Targets.of_classes(np.zeros(num_images, np.int64), "0123456789")
    examples = Examples(pixels, targets, np.arange(num_images, dtype=np.int64))
    source = Source(examples, keys, ViewSpec(), PIXELS)
    cut = cut_at(make_classifier("mobilenet_0.25"), "stage2")
    request = Request(cut, wanted(num_images, 1))
    cache_spec = CacheSpec(precision="float32")
    _, stats = extract(
        [request],
        source,
        cache_spec=cache_spec,
        cache=cache,
        reporter=SilentReporter(),
        # Of a size that a thousand images fill: shards are what memory holds.
        shard_bytes=2 * cut.num_values * 500,
    )
    assert stats.num_computed == num_images
    Path(result).write_text(str(peak_mb()))
