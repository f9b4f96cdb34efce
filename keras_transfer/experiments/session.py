"""Opens what an experiment works with."""

from keras_transfer.config import override
from keras_transfer.data.audit import pixels_key
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec

_PIXELS_SHARE = 0.5
"""Share of the cache that the pixels of one run may fill, so that features have room beside."""


def resolve_cache_mode(spec: RunSpec, num_images: int, *, reporter: Reporter) -> RunSpec:
    """The spec, with an 'auto' cache switched off if its limit is too low for the images."""
    num_bytes = num_images * pixels_key(spec.data).row_bytes
    share = _PIXELS_SHARE * spec.cache.limit_gb * 1e9
    if spec.cache.mode != "auto" or num_bytes <= share:
        return spec
    reporter.info(
        f"The cache is not used: the images alone take {num_bytes / 1e9:.2g} GB of its "
        f"{spec.cache.limit_gb:g} GB (cache.limit_gb); all phases train on images."
    )
    return override(spec, {"cache.mode": "off"})
