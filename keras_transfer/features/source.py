"""Sources, requests and results of an extraction: images and their views, cached rows.

The key of a row is the digest of its file, for an augmented view also that of the augmentation.
All else that it depends on (layers below the cut with their weights, size and resizing of the
images, precision, versions) is in the cache key of the entry. So every change is a cache miss.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from keras_transfer.data.datasets import Examples
from keras_transfer.data.views import VERSION, strengths
from keras_transfer.models.cuts import Cut
from keras_transfer.specs import CacheSpec, ViewSpec
from keras_transfer.storage.entry import CacheKey
from keras_transfer.storage.shards import Rows


@dataclass(frozen=True, eq=False)
class Source:
    """Images and their views, of which features are computed.

    `digests` are those of the files, row by row for `examples`; `pixels` is the cache key of the
    examples' pixels.
    """

    examples: Examples
    digests: Sequence[str]
    views: ViewSpec
    pixels: CacheKey

    def keys(self, wanted: np.ndarray) -> list[str]:
        """One key for each (row, view): plain images do not depend on the augmentation."""
        described = dataclasses.asdict(strengths(self.views, self.examples.pixels.shape[-1]))
        for name in ("policy", "count"):
            del described[name]
        text = json.dumps([VERSION, described], sort_keys=True)
        augmentation = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return [
            f"{self.digests[row]}:{augmentation}:{view}" if view else self.digests[row]
            for row, view in wanted.tolist()
        ]

    def part(self, rows: np.ndarray) -> "Source":
        """A source of some of the images only, small enough to send to another process."""
        examples = self.examples
        pixels = examples.pixels
        kept = dataclasses.replace(
            examples,
            pixels=pixels.part(rows) if isinstance(pixels, Rows) else pixels[rows],
            targets=examples.targets.take(rows),
            example_ids=examples.example_ids[rows],
        )
        digests = [self.digests[row] for row in rows]
        return dataclasses.replace(self, examples=kept, digests=digests)


@dataclass(frozen=True)
class Request:
    """Activations at one cut for the pairs `wanted`, int64 [N, 2] of (row, view)."""

    cut: Cut
    wanted: np.ndarray

    def parts(self) -> "list[Request]":
        """Requests for what is stored of the cut."""
        return [Request(part, self.wanted) for part in self.cut.stored]


def features_keys(cut: Cut, source: Source, cache_spec: CacheSpec) -> list[CacheKey]:
    """Cache keys of activations: one, or one for each part of the cut."""
    return [features_key(part, source, cache_spec) for part in cut.stored]


def features_key(cut: Cut, source: Source, cache_spec: CacheSpec) -> CacheKey:
    """Cache key of activations: all they depend on besides the keys of their rows."""
    return CacheKey(
        kind="features",
        title=f"features at {cut.name}, {source.pixels.title}",
        content={
            "below": cut.fingerprint,
            "pixels": source.pixels.digest,
            "precision": cache_spec.precision,
            "keras": keras.__version__,
        },
        shape=cut.shape,
        dtype=cache_spec.dtype,
    )


@dataclass(frozen=True, eq=False)
class Features:
    """Cached activations at one cut, of the requested views.

    `place` is int64 [num_images, num_views]: the index in `rows` of a view of an image, -1 where
    it was not requested.
    """

    rows: Rows
    place: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one view's activations."""
        return tuple(self.rows.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Data type of the cached values."""
        return self.rows.dtype

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        """Cached activations [B, …] of the given views of images."""
        places = self.place[rows, view_indices]
        assert (places >= 0).all(), "a view that was not extracted"
        return self.rows[places]


@dataclass(frozen=True, eq=False)
class JoinedFeatures:
    """Features [D] of the same views at several cuts, one behind the other."""

    parts: Sequence[Features]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one view's activations."""
        return (sum(part.shape[0] for part in self.parts),)

    @property
    def dtype(self) -> np.dtype:
        """Data type of the cached values."""
        return self.parts[0].dtype

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        """Cached activations [B, D] of the given views of images."""
        return np.concatenate([part.read(rows, view_indices) for part in self.parts], axis=1)
