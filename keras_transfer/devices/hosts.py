"""Hosts: processes that train one model together, each with its own devices (JAX).

Keras's environment variables define the hosts. The launcher of a cluster sets them, or
`scale.host_launcher` for several processes on one machine:

    KERAS_DISTRIBUTION_JOB_ADDRESSES    of the first host, or of all hosts with commas
    KERAS_DISTRIBUTION_NUM_PROCESSES    the number of hosts
    KERAS_DISTRIBUTION_PROCESS_ID       the number of this host, from 0

All hosts run the same program with the same spec, and wait for each other to exchange data. They
share two folders: the cache, and the run folder, which only host 0 writes.
"""

import functools
import os
import pickle
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from keras_transfer.errors import RunError, SpecError
from keras_transfer.specs import DeviceSpec

if TYPE_CHECKING:
    import numpy as np

ADDRESSES: Final = "KERAS_DISTRIBUTION_JOB_ADDRESSES"
NUM_HOSTS: Final = "KERAS_DISTRIBUTION_NUM_PROCESSES"
HOST: Final = "KERAS_DISTRIBUTION_PROCESS_ID"

_ADDRESS: Final = re.compile(r"[^\s,]+:\d+")

HEARTBEAT_SECONDS: Final = 20
"""Time without a signal after which a host counts as lost, which ends the run."""


def given_host() -> tuple[int, int]:
    """The number of this host and the number of hosts, from the variables; (0, 1) without them.

    Raises:
        RunError: only some of the variables are set, or their values are inconsistent.
    """
    values = {name: os.environ.get(name, "") for name in (ADDRESSES, NUM_HOSTS, HOST)}
    if not any(values.values()):
        return 0, 1
    addresses = values[ADDRESSES].split(",")
    numbers = values[HOST], values[NUM_HOSTS]
    if all(map(_ADDRESS.fullmatch, addresses)) and all(text.isdecimal() for text in numbers):
        host, num_hosts = map(int, numbers)
        if host < num_hosts and len(addresses) in (1, num_hosts):
            return host, num_hosts
    raise RunError(
        "the variables of the hosts of a run are inconsistent",
        expected=f"{ADDRESSES}=ADDRESS:PORT of the first host or of all, {NUM_HOSTS}=2 or more, "
        f"and {HOST} from 0 to one less",
        received=", ".join(f"{name}={value!r}" for name, value in values.items()),
        fix="set all three like that on every host, or none of them",
    )


def first_address() -> str:
    """ADDRESS:PORT of the first host; only with several hosts, see `given_host`."""
    return os.environ[ADDRESSES].split(",")[0]


def check_one_host(spec: DeviceSpec, what: str) -> None:
    """Raise SpecError if several hosts are set for `what`; see `num_hosts_of`."""
    if (num_hosts := num_hosts_of(spec)) > 1:
        raise SpecError(
            f"{what} runs on one host only",
            expected="devices.hosts left out, and none of Keras's variables for hosts",
            received=f"{num_hosts} hosts",
            fix="leave them out; `python -m pipelines.train` starts several hosts for one run",
        )


def num_hosts_of(spec: DeviceSpec) -> int:
    """Number of hosts that train together, from the variables or the spec.

    Raises:
        RunError: the variables are inconsistent.
        SpecError: they contradict the spec.
    """
    _, given = given_host()
    if given > 1 and spec.hosts not in (1, given):
        raise SpecError(
            "the spec and Keras's variables have different numbers of hosts",
            expected=f"devices.hosts={given}, or left out",
            received=f"devices.hosts={spec.hosts}, {NUM_HOSTS}={given}",
            fix="leave devices.hosts out: it starts processes on this machine",
        )
    return max(given, spec.hosts)


@functools.cache
def meet() -> tuple[int, int]:
    """Connect to the other hosts, if any; return the number of this host and the number of hosts.

    `devices.set_up` calls it before anything is computed. It does what
    `keras.distribution.initialize` does, which has no setting for `HEARTBEAT_SECONDS`.

    Raises:
        RunError: the variables are inconsistent, or the other hosts do not connect.
    """
    host, num_hosts = given_host()
    if num_hosts > 1:
        import jax

        try:
            jax.distributed.initialize(
                first_address(), num_hosts, host, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
            )
        except RuntimeError as error:
            raise RunError(
                f"host {host} of {num_hosts} cannot connect to the others",
                expected=f"all of them at {first_address()} within five minutes",
                received=f"{error}",
                fix="start all hosts, and check that they can reach this address and port",
            ) from error
    return host, num_hosts


def wait_for_all() -> None:
    """Wait until every host has called this."""
    gather(None)


def gather(value: Any) -> list[Any]:
    """The values of all hosts, in the order of the hosts; all hosts must call this.

    Values are pickled: the hosts of one run trust each other.
    """
    import numpy as np

    _, num_hosts = meet()
    if num_hosts == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = _gathered(np.array([len(data)])).ravel()
    filled = np.zeros(int(sizes.max()), np.uint8)
    filled[: len(data)] = data
    rows = _gathered(filled)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def share_from_first(value: Any) -> Any:
    """Host 0's value, on all hosts."""
    host, _ = meet()
    return gather(value if host == 0 else None)[0]


def share_out(
    rows: "np.ndarray",
    compute: "Callable[[np.ndarray], np.ndarray]",
    *,
    shape: tuple[int, ...],
) -> "np.ndarray":
    """`compute(rows)`, float32 [N, *shape]: each host computes a part; all get the whole."""
    import numpy as np

    host, num_hosts = meet()
    if num_hosts == 1 or not len(rows):
        return compute(rows)
    # A gather needs equally many rows from all hosts: the first rows are repeated as padding.
    size = -(-len(rows) // num_hosts)
    places = np.resize(np.arange(len(rows)), size * num_hosts).reshape(num_hosts, size)
    mine = compute(rows[places[host]]).astype(np.float32)
    return _gathered(mine).reshape(-1, *shape)[: len(rows)]


def _gathered(array: "np.ndarray") -> "np.ndarray":
    import numpy as np
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array))
