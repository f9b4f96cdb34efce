"""Shared by the tests of the cache: a cache key, and rows that are a function of their keys."""

import hashlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from keras_transfer.storage.cache import Cache
from keras_transfer.storage.entry import CacheKey

ROW_BYTES = 96


def _make(keys: Sequence[str]) -> np.ndarray:
    digests = [hashlib.shake_128(key.encode()).digest(ROW_BYTES) for key in keys]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 4, 8, 3)


@pytest.fixture(scope="session")
def make() -> Callable[[Sequence[str]], np.ndarray]:
    """Rows uint8 [n, 4, 8, 3], each a function of its key alone."""
    return _make


@pytest.fixture(scope="session")
def cache_key() -> Callable[..., CacheKey]:
    """Cache keys of `make`'s rows that differ in `content`."""

    def build(**content: object) -> CacheKey:
        return CacheKey("features", f"features of {content}", content, (4, 8, 3), "uint8")

    return build


@pytest.fixture
def heard() -> list[str]:
    """Messages of a cache: `Cache(folder, say=heard.append)`."""
    return []


@pytest.fixture(scope="session")
def fill() -> Callable[..., list[int]]:
    """Computes missing rows of `keys`, in shards of `size` rows; returns their positions."""

    def build(
        cache: Cache, cache_key: CacheKey, keys: Sequence[str], *, size: int = 10
    ) -> list[int]:
        with cache.opened(cache_key) as (entry,):
            missing = entry.missing(keys)
            wanted = [keys[position] for position in missing]
            for first in range(0, len(wanted), size):
                entry.append(wanted[first : first + size], _make(wanted[first : first + size]))
            np.testing.assert_array_equal(entry.rows(keys), _make(keys))
        return missing

    return build


@pytest.fixture(scope="session")
def child() -> Callable[..., subprocess.Popen[str]]:
    """Starts a program that knows `make`, `cache_key`, `Cache` and the folder `folder`."""

    def start(program: str, folder: Path) -> subprocess.Popen[str]:
        preamble = """
            import hashlib, os, signal, sys, time
            # Background jobs of a shell ignore Ctrl-C, and so do their children.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            from pathlib import Path
            import numpy as np
            from keras_transfer.storage.entry import CacheKey
            from keras_transfer.storage.cache import Cache
            folder = Path(sys.argv[1])
            def make(keys):
                digests = [hashlib.shake_128(key.encode()).digest(96) for key in keys]
                return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 4, 8, 3)
            def cache_key(**content):
                return CacheKey("features", f"features of {content}", content, (4, 8, 3), "uint8")
            def say(text):
                print(text, flush=True)
        """
        source = textwrap.dedent(preamble) + textwrap.dedent(program)
        command = [sys.executable, "-c", source, str(folder)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )

    return start
