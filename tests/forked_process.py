"""Processes that start in milliseconds: forked from one that has imported TensorFlow.

`ForkedProcess(command, …)` is `subprocess.Popen(command, …)` for `python -m module …` and
`python -c code …`, with a number of its own, which signals reach. It is for tests of what a process
does; those of how it starts use new processes. Where variables that TensorFlow and Keras read when
they are imported have other values, the process is a new one.
"""

import ctypes
import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SERVER = Path(__file__).with_name("forking_process.py")
READ_ON_IMPORT = ("KERAS_", "TF_", "CUDA_", "XLA_", "JAX_", "OMP_", "OPENBLAS_")
READ_LATER = ("KERAS_TRANSFER_", "KERAS_DISTRIBUTION_", "TF_CPP_", "JAX_PLATFORMS")
"""Of this package, of hosts, of messages, and of another backend."""

_PR_SET_CHILD_SUBREAPER = 36

STARTED_WITH: dict[str, str] = {}
"""The environment before any test, which conftest.py fills in: a test may have changed it when the
forking process is needed first."""


def read_on_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a process which has imported TensorFlow can no longer change."""
    found = {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_ON_IMPORT) and not name.startswith(READ_LATER)
    }
    return {"KERAS_BACKEND": "tensorflow"} | found


@functools.cache
def _server() -> tuple[socket.socket, dict[str, str], subprocess.Popen]:
    """The socket of the forking process, which ends with this one, its variables and itself."""
    # Processes whose parent has ended become children of this one.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, str(SERVER), str(theirs.fileno())]
    environment = STARTED_WITH or dict(os.environ)
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
    return ours, read_on_import(environment), process


class ForkedProcess(subprocess.Popen):
    """A process that another one forks; arguments, attributes and methods are those of Popen."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        environment = dict(os.environ if env is None else env)
        if sys.platform != "linux" or read_on_import(environment) != _server()[1]:
            super()._execute_child(
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest
            )
            return
        assert args[0] == sys.executable
        order = {
            "words": [str(word) for word in args[1:]],
            "folder": str(Path(cwd or ".").absolute()),
            "environment": environment,
            "parent": os.getpid(),
        }
        pipes = rest[3:9]
        given = pipes[0], pipes[3], pipes[5]
        streams = [own if stream == -1 else stream for own, stream in enumerate(given)]
        channel = _server()[0]
        socket.send_fds(channel, [json.dumps(order).encode()], streams)
        self.pid = int(channel.recv(100))
        self._child_created = True
        self._close_pipe_fds(*pipes)


def forking(module: Any) -> Any:
    """What stands for `subprocess` in a module whose processes are to be forked."""
    return SimpleNamespace(**{**vars(module.subprocess), "Popen": ForkedProcess})
