"""Hosts: processes that train one model together, each with its own devices (JAX).

Keras's own variables say which hosts there are. A cluster's launcher sets them, or
`scale.host_launcher` for several processes of one machine:

    KERAS_DISTRIBUTION_JOB_ADDRESSES    of the first host, or of all, with commas between
    KERAS_DISTRIBUTION_NUM_PROCESSES    how many there are
    KERAS_DISTRIBUTION_PROCESS_ID       which one this is, from 0

All run the same program on the same spec, and wait for each other where they exchange data. They
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
"""How long a host may be silent before it counts as lost, which ends the run."""


def given_host() -> tuple[int, int]:
    """The number of this host and how many there are, from the variables; (0, 1) without them.

    Raises:
        RunError: only some of the variables are set, or their values do not fit together.
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
        "the variables that name the hosts of a run do not fit together",
        expected=f"{ADDRESSES}=ADDRESS:PORT of the first host or of all, {NUM_HOSTS}=2 or more, "
        f"and {HOST} from 0 to one less",
        received=", ".join(f"{name}={value!r}" for name, value in values.items()),
        fix="set all three like that on every host, or none of them",
    )


def first_address() -> str:
    """ADDRESS:PORT of the first host, where `given_host` says that there are several."""
    return os.environ[ADDRESSES].split(",")[0]


def check_one_host(spec: DeviceSpec, what: str) -> None:
    """Raise SpecError if `what` is to run on several hosts; see `num_hosts_of`."""
    if (num_hosts := num_hosts_of(spec)) > 1:
        raise SpecError(
            f"{what} runs on one host only",
            expected="devices.hosts left out, and none of Keras's variables for hosts",
            received=f"{num_hosts} hosts",
            fix="leave them out; `python -m pipelines.train` starts several hosts for one run",
        )


def num_hosts_of(spec: DeviceSpec) -> int:
    """How many hosts train together, from the variables or the spec.

    Raises:
        RunError: the variables do not fit together.
        SpecError: they contradict the spec.
    """
    _, given = given_host()
    if given > 1 and spec.hosts not in (1, given):
        raise SpecError(
            "the spec and Keras's variables name different numbers of hosts",
            expected=f"devices.hosts={given}, or left out",
            received=f"devices.hosts={spec.hosts}, {NUM_HOSTS}={given}",
            fix="leave devices.hosts out: it starts processes of this machine",
        )
    return max(given, spec.hosts)


@functools.cache
def meet() -> tuple[int, int]:
    """Connect to the other hosts, if there are any; the number of this one and how many there are.

    `devices.set_up` calls it before anything is computed. It does what
    `keras.distribution.initialize` does, which has no setting for `HEARTBEAT_SECONDS`.

    Raises:
        RunError: the variables do not fit together, or the other hosts do not connect.
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
                fix="start all hosts, and see that they can reach this address and port",
            ) from error
    return host, num_hosts


def wait_for_all() -> None:
    """Wait until every host has called this."""
    gather(None)


def gather(value: Any) -> list[Any]:
    """The values of all hosts, in the order of hosts; all hosts must call it.

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
    """`compute(rows)`, float32 [N, *shape]: each host computes a part and all get the whole."""
    import numpy as np

    host, num_hosts = meet()
    if num_hosts == 1 or not len(rows):
        return compute(rows)
    # Equal numbers for all hosts, as a gather needs: the first rows are repeated to fill up.
    size = -(-len(rows) // num_hosts)
    places = np.resize(np.arange(len(rows)), size * num_hosts).reshape(num_hosts, size)
    mine = compute(rows[places[host]]).astype(np.float32)
    return _gathered(mine).reshape(-1, *shape)[: len(rows)]


def _gathered(array: "np.ndarray") -> "np.ndarray":
    import numpy as np
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array))
