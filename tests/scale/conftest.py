"""One Ray cluster for all tests of workers, and a way to kill one of them."""

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.scale.cluster import joined


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A cluster of this machine, with room for four workers."""
    if not importlib.util.find_spec("ray"):
        pytest.skip("the extra [scale] is not installed")
    with joined(4, reporter=SilentReporter()):
        yield


@pytest.fixture
def kill_one(ray_cluster: None) -> Callable[[str], bool]:
    """Kills one working process of a kind, among the descendants of this process."""

    def kill(kind: str) -> bool:
        for pid in _below(os.getpid()):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode().strip("\0")
            if title.startswith(f"ray::{kind}."):
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    return kill


def _below(parent: int) -> Iterator[int]:
    """All processes that descend from one."""
    for task in Path(f"/proc/{parent}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from _below(int(child))
