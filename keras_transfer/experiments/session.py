"""Which store a run keeps its pixels and features in: the cache that all share, or its own."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from keras_transfer.config import override
from keras_transfer.data.audit import pixels_recipe
from keras_transfer.reporting.reporter import Narrator
from keras_transfer.specs import RunSpec
from keras_transfer.storage.cache import Store, feature_folder

_PIXELS_SHARE = 0.5
"""Share of the cache that the pixels of one run may fill, so that features have room beside."""


@contextlib.contextmanager
def open_store(
    spec: RunSpec, *, narrator: Narrator, scratch: Path | None = None
) -> Iterator[Store]:
    """The shared cache; with cache.mode 'off' a store of its own, removed in the end.

    Args:
        scratch: an existing folder on a disk with room; None takes the system's.
    """
    if spec.cache.mode != "off":
        limit = int(spec.cache.limit_gb * 1e9)
        yield Store(feature_folder(spec.cache.folder), limit_bytes=limit, say=narrator.say)
        return
    with tempfile.TemporaryDirectory(prefix="pixels-", dir=scratch) as folder:
        yield Store(Path(folder), say=narrator.say)


def settle(spec: RunSpec, num_pictures: int, *, narrator: Narrator) -> RunSpec:
    """The spec, with an 'auto' cache switched off if its limit is too low for the pictures."""
    num_bytes = num_pictures * pixels_recipe(spec.data).row_bytes
    share = _PIXELS_SHARE * spec.cache.limit_gb * 1e9
    if spec.cache.mode != "auto" or num_bytes <= share:
        return spec
    narrator.say(
        f"The cache is not used: the pictures alone take {num_bytes / 1e9:.2g} GB of its "
        f"{spec.cache.limit_gb:g} GB (cache.limit_gb); all phases train on pictures."
    )
    return override(spec, {"cache.mode": "off"})
