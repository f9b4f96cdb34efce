"""Answers: a whole classifier's logits for plain images, kept like any other features.

Judging the same model on the same images again needs neither pixels nor the network. Logits are
stored in float32, exactly as the model gave them.
"""

from collections.abc import Sequence

import keras
import numpy as np

from keras_transfer.data.datasets import Pixels
from keras_transfer.models.cuts import fingerprint
from keras_transfer.models.forward import forward_pixels, softmax
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.entry import CacheKey


def logits_key(model: keras.Model, pixels: CacheKey) -> CacheKey:
    """What a classifier's logits are a function of, beside the image's file."""
    return CacheKey(
        kind="logits",
        title=f"answers of a classifier of {model.output_shape[-1]} classes",
        content={
            "model": fingerprint(model),
            "pixels": pixels.digest,
            "keras": keras.__version__,
        },
        shape=model.output_shape[1:],
        dtype="float32",
    )


def known_probabilities(
    model: keras.Model, *, pixels: CacheKey, cache: Cache
) -> dict[str, np.ndarray]:
    """Class probabilities float32 [C] of all images the model was asked about, by digest."""
    with cache.opened(logits_key(model, pixels)) as (entry,):
        entry.check()
        digests = entry.keys
        rows = entry.rows(digests)
    return dict(zip(digests, softmax(np.asarray(rows)), strict=True)) if digests else {}


def predict_cached(
    model: keras.Model,
    digests: Sequence[str],
    pixels: Pixels,
    *,
    rows: np.ndarray | None = None,
    pixels_key: CacheKey,
    cache: Cache,
    reporter: Reporter,
) -> np.ndarray:
    """Class probabilities float32 [N, C] of N images.

    Args:
        model: from pixels float32 [B, S, S, 3] in 0-255 to logits.
        digests: of the N images' files.
        pixels: uint8 [M, S, S, 3], looked at only where an answer is not stored.
        rows: which N of the M pixels are meant; None means all, one after the other.
        pixels_recipe: how these pixels were made from their files.

    Raises:
        RunError: answers cannot be stored.
    """
    cache_key = logits_key(model, pixels_key)
    with cache.opened(cache_key) as (entry,):
        missing = np.asarray(entry.missing(digests), np.int64)
        if len(missing):
            with reporter.progress("asking the classifier") as count:
                new = missing if rows is None else rows[missing]
                logits = forward_pixels(model, pixels, rows=new, on_progress=count)
            entry.append([digests[row] for row in missing], logits)
        return softmax(np.asarray(entry.rows(digests)))
