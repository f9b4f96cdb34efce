"""An audit by one of several hosts, in a process of its own."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path[:0] = [str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402


def run(images: str, cache: str) -> dict:
    """Audit a folder of classes twice: what was found, and how much was decoded each time."""
    from labelled import read_records

    from keras_transfer.data.audit import audit
    from keras_transfer.devices.hosts import wait_for_all
    from keras_transfer.reporting.reporter import SilentReporter
    from keras_transfer.specs import DataSpec
    from keras_transfer.storage.cache import Cache

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


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:])))  # noqa: T201
