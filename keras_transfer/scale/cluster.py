"""A Ray cluster to work on: one that runs already, or this machine's cores for as long as needed.

Ray's own variable RAY_ADDRESS names a running cluster. Otherwise one is started here, which
strangers cannot use: Ray listens on all network interfaces, so it asks for a random token. Nothing
is reported to anybody.
"""

import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from keras_transfer.errors import RunError
from keras_transfer.reporting.reporter import Reporter

_FEWEST_THREADS: Final = 2
"""In bfloat16 a single thread adds in another order than two, three, eight or sixteen do."""

_MESSAGES_BYTES: Final = 100 << 20
"""Room for what travels between processes: a few chunks' rows, no images."""

_ANSWER_SECONDS: Final = 5


@dataclass(frozen=True)
class Share:
    """What each worker gets: CPUs for Ray's bookkeeping, and threads to compute with."""

    num_cpus: int

    @property
    def num_threads(self) -> int:
        return max(_FEWEST_THREADS, self.num_cpus)


@contextlib.contextmanager
def joined(num_workers: int, *, reporter: Reporter) -> Iterator[Share]:
    """Join a cluster while the block runs, and share its CPUs out among as many workers.

    A cluster that this process has joined already is used and left as it is.

    Raises:
        RunError: Ray is not installed, the cluster does not answer, or it has too few CPUs.
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
            f"{num_workers} workers {place}, {share.num_threads} threads each; what they print is "
            "in Ray's logs."
        )
        yield share
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    """Ray, which reads these variables as it is imported; whoever did that before has chosen."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules and "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise RunError(
            "work cannot be shared out among processes",
            expected="the library of the extra [scale]",
            received="no ray",
            fix='pip install -e ".[scale]", or leave --workers out',
        ) from error
    return ray


def _start(ray: Any, address: str, num_workers: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if not address:
        ray.init(
            address="local",  # Not whichever cluster may happen to run on this machine.
            num_cpus=max(num_workers, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=_MESSAGES_BYTES,
            **quiet,
        )
        return
    try:
        # Ray itself would look for a cluster for six minutes.
        host, port = address.rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, ray.exceptions.RayError) as error:
        raise RunError(
            f"there is no Ray cluster to join at RAY_ADDRESS={address}",
            expected="HOST:PORT of a running one, and its RAY_AUTH_TOKEN where it asks for one",
            received=str(error)[:300],
            fix="correct RAY_ADDRESS, or unset it to work on this machine",
        ) from error


def _share(ray: Any, num_workers: int) -> Share:
    """As many CPUs for each worker as still leave room for all of them on their nodes."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    for num_cpus in range(max(nodes, default=0), 0, -1):
        if sum(node // num_cpus for node in nodes) >= num_workers:
            return Share(num_cpus)
    raise RunError(
        f"--workers {num_workers} are more than the Ray cluster has CPUs",
        expected=f"at most {sum(nodes)}",
        received=f"{num_workers}",
        fix=f"set --workers {max(sum(nodes), 1)}, or add machines to the cluster",
    )
