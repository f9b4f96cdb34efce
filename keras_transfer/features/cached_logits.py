"""The logits of a whole classifier for plain images, cached like other features.

Evaluating the same model on the same images again needs neither pixels nor the network. Logits are
stored in float32, exactly as the model computed them.
"""

from collections.abc import Sequence

import keras
import numpy as np

from keras_transfer.data.datasets import Pixels
from keras_transfer.models.activations import Activation, activate
from keras_transfer.models.cuts import fingerprint
from keras_transfer.models.forward import forward_pixels
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.entry import CacheKey


def logits_key(model: keras.Model, pixels: CacheKey) -> CacheKey:
    """Cache key of a classifier's logits: all they depend on besides the image's file."""
    return CacheKey(
        kind="logits",
        title=f"logits of a classifier with {model.output_shape[-1]} outputs",
        content={
            "model": fingerprint(model),
            "pixels": pixels.digest,
            "keras": keras.__version__,
        },
        shape=model.output_shape[1:],
        dtype="float32",
    )


def known_outputs(
    model: keras.Model, *, pixels: CacheKey, cache: Cache, activation: Activation
) -> dict[str, np.ndarray]:
    """Activated outputs float32 [K] of all images with cached logits, by digest."""
    with cache.opened(logits_key(model, pixels)) as (entry,):
        entry.check()
        digests = entry.keys
        rows = entry.rows(digests)
    if not digests:
        return {}
    return dict(zip(digests, activate(np.asarray(rows), activation), strict=True))


def predict_cached(
    model: keras.Model,
    digests: Sequence[str],
    pixels: Pixels,
    *,
    rows: np.ndarray | None = None,
    pixels_key: CacheKey,
    cache: Cache,
    reporter: Reporter,
    activation: Activation,
) -> np.ndarray:
    """Activated outputs float32 [N, K] of N images.

    Args:
        model: from pixels float32 [B, S, S, C] in 0-255 to logits.
        digests: of the N images' files.
        pixels: uint8 [M, S, S, C], read only where logits are not cached.
        rows: indices of the N images in `pixels`; None means all, in order.
        pixels_key: cache key of the pixels.

    Raises:
        RunError: logits cannot be stored.
    """
    cache_key = logits_key(model, pixels_key)
    with cache.opened(cache_key) as (entry,):
        missing = np.asarray(entry.missing(digests), np.int64)
        if len(missing):
            with reporter.progress("predicting") as count:
                new = missing if rows is None else rows[missing]
                logits = forward_pixels(model, pixels, rows=new, on_progress=count)
            entry.append([digests[row] for row in missing], logits)
        return activate(np.asarray(entry.rows(digests)), activation)
