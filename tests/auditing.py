"""An audit of a folder of classes, by one of several hosts or alone."""

from pathlib import Path

import numpy as np
from labelled import read_records

from keras_transfer.data.audit import audit
from keras_transfer.devices.hosts import wait_for_all
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import DataSpec
from keras_transfer.storage.cache import Cache


def find_images(images: str, cache: str) -> dict:
    """Audit twice: what was found, and how much was decoded each time."""
    spec = DataSpec(path=images, image_size=16)
    records = read_records(spec)
    decoded = []
    for _ in range(2):
        audited, pixels, num_decoded = audit(
            records, spec, cache=Cache(Path(cache)), reporter=SilentReporter()
        )
        decoded.append(num_decoded)
        wait_for_all()
    return {
        "paths": [record.path for record in audited.items],
        "digests": [record.digest for record in audited.items],
        "bad": [file.path for file in audited.bad_files],
        "notes": list(audited.notes),
        "sums": np.asarray(pixels).sum(axis=(1, 2, 3)).tolist(),
        "decoded": decoded,
    }
