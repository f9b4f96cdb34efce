"""Both backends compute the same features, and find each other's in the cache."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from jax_processes import JAX

from pipelines import extract

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed"),
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="this process is to be TensorFlow's"
    ),
]


def words(images: Path, cache: Path) -> list[str]:
    changes = {
        "data.source": "folder",
        "data.path": str(images),
        "data.train_size": 30,
        "data.val_fraction": 0.1,
        "data.test_fraction": 0.1,
        "model.last_stage": "stage2",
        "cache.folder": str(cache),
        "cache.dtype": "float32",
        "views.count": 2,
        "phases.1.unfreeze": "stage2",
    }
    return ["quickstart", *(f"{field}={value}" for field, value in changes.items())]


EXTRACT_BOTH = """
import sys
from pipelines import extract
half = len(sys.argv) // 2 + 1
sys.exit(extract.main(sys.argv[1:half]) or extract.main(sys.argv[half:]))
"""


def features(cache: Path) -> dict[str, dict[str, np.ndarray]]:
    """Rows of all entries of features by their keys, read without our own code."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for entry in cache.rglob("entry.json"):
        cache_key = json.loads(entry.read_text())["content"]["cache_key"]
        if cache_key["kind"] != "features":
            continue
        rows = found.setdefault(entry.parent.name, {})
        for keys_file in entry.parent.glob("shard-*.json"):
            keys = json.loads(keys_file.read_text())["content"]["keys"]
            data = np.fromfile(keys_file.with_suffix(".bin"), cache_key["dtype"])
            rows.update(zip(keys, data.reshape(len(keys), *cache_key["shape"]), strict=True))
    return found


@pytest.mark.slow
def test_features_are_equal_to_four_digits_under_the_same_names(digits_folder, tmp_path):
    stores = {name: tmp_path / name for name in ("tensorflow", "jax")}
    of_tensorflow, of_jax = (words(digits_folder, cache) for cache in stores.values())
    assert extract.main(of_tensorflow) == 0
    done = subprocess.run(
        [sys.executable, "-c", EXTRACT_BOTH, *of_jax, *of_tensorflow],
        cwd=ROOT,
        env={**os.environ, **JAX},
        capture_output=True,
        text=True,
        check=True,
    )
    assert " ".join(done.stdout.split()).count("none is computed") == 1
    expected, received = (features(cache) for cache in stores.values())
    assert len(expected) == 2
    assert received.keys() == expected.keys()
    for name, rows in expected.items():
        assert received[name].keys() == rows.keys()
        values = np.stack([rows[key] for key in rows])
        others = np.stack([received[name][key] for key in rows])
        assert values.std() > 0.1
        np.testing.assert_allclose(others, values, rtol=1e-4, atol=1e-4 * values.std())
