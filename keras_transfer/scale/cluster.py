"""A Ray cluster: one that is running already, or a temporary one on this machine.

Ray's variable RAY_ADDRESS is the address of a running cluster. A temporary one requires a random
token, because Ray listens on all network interfaces. Ray's usage statistics are switched off.
"""

import contextlib
import importlib.util
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keras_transfer.errors import RunError

if TYPE_CHECKING:
    from keras_transfer.reporting.reporter import Reporter

_FEWEST_THREADS: Final = 2
"""In bfloat16 one thread sums in another order than two, three, eight or sixteen threads."""

_MESSAGES_BYTES: Final = 100 << 20
"""Bytes of shared memory for data between processes: rows of a few chunks, no images."""

_ANSWER_SECONDS: Final = 5


@dataclass(frozen=True)
class Share:
    """The resources of each worker: CPUs in the count of Ray, and number of threads."""

    num_cpus: int

    @property
    def num_threads(self) -> int:
        return max(_FEWEST_THREADS, self.num_cpus)


@contextlib.contextmanager
def joined(num_workers: int, *, reporter: "Reporter") -> Iterator[Share]:
    """Join a cluster while the block runs, and divide its CPUs among the workers.

    If this process has already joined a cluster, it is used and stays connected.

    Raises:
        RunError: Ray is not installed, the cluster does not respond, or it has too few CPUs.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield _share(ray, num_workers)
        return
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        _start(ray, address, num_workers)
        share = _share(ray, num_workers)
        place = f"of the cluster at {address}" if address else "of this machine"
        reporter.info(
            f"{num_workers} workers {place}, {share.num_threads} threads each; their output is "
            "in Ray's logs."
        )
        yield share
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    """Import Ray, which reads these variables at import; values set earlier are kept."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules and "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    check_ray()
    import ray

    return ray


def check_ray() -> None:
    """Raise RunError unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise RunError(
            "--workers needs Ray, which is not installed",
            expected="the library of the extra [scale]",
            received="no ray",
            fix='pip install -e ".[scale]", or leave --workers out',
        )


def _start(ray: Any, address: str, num_workers: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if not address:
        ray.init(
            address="local",  # Not another running cluster of this machine.
            num_cpus=max(num_workers, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=_MESSAGES_BYTES,
            **quiet,
        )
        return
    try:
        # By default Ray would try for six minutes.
        host, port = address.rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, ray.exceptions.RayError) as error:
        raise RunError(
            f"there is no Ray cluster to join at RAY_ADDRESS={address}",
            expected="HOST:PORT of a running one, and its RAY_AUTH_TOKEN if it requires one",
            received=str(error)[:300],
            fix="correct RAY_ADDRESS, or unset it to work on this machine",
        ) from error


def _share(ray: Any, num_workers: int) -> Share:
    """The most CPUs for each worker with which all workers fit on the nodes."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    for num_cpus in range(max(nodes, default=0), 0, -1):
        if sum(node // num_cpus for node in nodes) >= num_workers:
            return Share(num_cpus)
    raise RunError(
        f"--workers {num_workers} exceeds the number of CPUs of the Ray cluster",
        expected=f"at most {sum(nodes)}",
        received=f"{num_workers}",
        fix=f"set --workers {max(sum(nodes), 1)}, or add machines to the cluster",
    )
