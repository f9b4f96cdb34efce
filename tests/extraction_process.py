"""An extraction in a process of its own, to be killed by tests."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from feature_sources import EXACT, cut_at, make_source, wanted
from small_models import make_classifier

from keras_transfer.features.extraction import extract
from keras_transfer.features.source import Request
from keras_transfer.features.store import Store
from keras_transfer.terminal import Silent

NUM_PICTURES = 320
SHARD_BYTES = 300_000
"""Of small shards, so that there are many moments between two of them."""


def run(folder: str, result: str, started: str = "") -> None:
    """Extract at two cuts of one network; with views of every picture at one of them."""
    classifier, source = make_classifier("mobilenet_0.25"), make_source(NUM_PICTURES)
    cuts = [cut_at(classifier, "head"), cut_at(classifier, "stage2")]
    pairs = [wanted(NUM_PICTURES, 1), wanted(NUM_PICTURES, 3)]
    requests = [Request(cut, rows) for cut, rows in zip(cuts, pairs, strict=True)]
    if started:
        Path(started).touch()
    features, tally = extract(
        requests,
        source,
        cache=EXACT,
        store=Store(Path(folder)),
        narrator=Silent(),
        shard_bytes=SHARD_BYTES,
    )
    arrays = {str(number): np.asarray(item.rows) for number, item in enumerate(features)}
    np.savez(result, computed=tally.num_computed, **arrays)
