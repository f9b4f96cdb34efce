"""One function call in a fresh Python process, with its own memory and its own TensorFlow.

A process keeps its imports, traces and memory, so two measurements in one process would influence
each other. Arguments and results are passed as JSON; the output of the call and its traceback are
written to a log.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from keras_transfer.devices.startup import speed_up_imports
from keras_transfer.errors import KerasTransferError, RunError

_SHOWN_LINES = 15
_POLL_SECONDS = 0.5


class SubprocessCall:
    """A module's function running in a separate process."""

    def __init__(
        self,
        function: Callable[..., Any],
        /,
        *,
        title: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
        on_terminal: bool = False,
        **arguments: Any,
    ):
        """Start the process.

        Args:
            function: takes and returns JSON values only.
            title: name of the call, for the error.
            log: the output of the subprocess is appended to this file.
            environment: additional environment variables.
            on_terminal: show its standard output; standard error goes to the log.
        """
        self._title, self._log = title, log
        self._scratch = tempfile.TemporaryDirectory()
        self._reply = Path(self._scratch.name) / "result.json"
        target = f"{function.__module__}:{function.__qualname__}"
        with log.open("ab") as stream:
            self._start = stream.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, target, str(self._reply)],
                stdin=subprocess.PIPE,
                stdout=None if on_terminal else stream,
                stderr=stream,
                env={**os.environ, **(environment or {})},
            )
        assert self._process.stdin
        # A subprocess that failed at once has closed the pipe; `result` raises its error.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(json.dumps(arguments).encode())

    @property
    def ended(self) -> bool:
        """Whether the process has ended, with or without an error."""
        return self._process.poll() is not None

    @property
    def ended_well(self) -> bool:
        """Whether its function returned, without an error and without a crash."""
        has_result = self.ended and self._process.returncode == 0
        return has_result and "error" not in json.loads(self._reply.read_text())

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it."""
        return self.ended and self._process.returncode < 0

    @property
    def ending(self) -> str:
        """The signal or exit status of the process."""
        return describe_status(self._process.returncode)

    def result(self) -> Any:
        """Wait for the end and return what the function returned.

        Raises:
            KerasTransferError: the error that the function raised.
            RunError: the subprocess failed; `received` has the end of its traceback.
        """
        status = self._process.wait()
        reply = json.loads(self._reply.read_text()) if status == 0 else None
        self._scratch.cleanup()
        if reply is None:
            with self._log.open("rb") as stream:
                stream.seek(self._start)
                raise _crash(self._title, self.ending, stream.read())
        if "error" in reply:
            raise _error_class(reply["error"])(**reply["parts"])
        return reply["value"]

    def stop(self) -> None:
        """Kill the process if it has not ended yet."""
        if not self.ended:
            self._process.kill()
            self._process.wait()
        self._scratch.cleanup()


def describe_status(status: int) -> str:
    """The signal that ended a process, or its exit status; as `Popen.returncode` gives it."""
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _error_class(name: str) -> type[KerasTransferError]:
    """The class of an error of this package, by its name."""
    known, left = {}, [KerasTransferError]
    while left:
        kind = left.pop()
        known[kind.__name__] = kind
        left += kind.__subclasses__()
    return known[name]


def call_in_subprocess(
    function: Callable[..., Any], /, *, title: str, log: Path, **arguments: Any
) -> Any:
    """Call a module's function with these arguments in a separate process and wait for it.

    Arguments, result and errors are those of `SubprocessCall`.
    """
    call = SubprocessCall(function, title=title, log=log, **arguments)
    try:
        return call.result()
    finally:
        call.stop()


def end_with_parent(parent: int) -> None:
    """End this process as soon as its parent has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def free_port() -> int:
    """A port of this machine that no program listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _crash(title: str, ended: str, output: bytes) -> RunError:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    tail = "".join(f"\n    {line}" for line in lines[-_SHOWN_LINES:])
    return RunError(
        f"{title} crashed",
        expected="a process that returns a result",
        received=f"{ended}{', its last output:' if tail else ''}{tail}",
        fix="correct the error above; if memory ran out (a likely cause of SIGKILL), lower "
        "data.image_size or training.batch_size",
    )


def _run_child() -> None:
    """Main function of the subprocess: read arguments, call the function, write its result."""
    target, file = sys.argv[1:]
    speed_up_imports()
    module, name = target.split(":")
    arguments = json.load(sys.stdin)
    try:
        reply = {"value": getattr(importlib.import_module(module), name)(**arguments)}
    except KerasTransferError as error:
        parts = {part: getattr(error, part) for part in ("what", "expected", "received", "fix")}
        reply = {"error": type(error).__name__, "parts": parts}
    Path(file).write_text(json.dumps(reply))
    if "error" in reply:
        sys.stdout.flush()
        os._exit(0)  # At exit a JAX host would wait for the others, which wait for it.


if __name__ == "__main__":
    _run_child()
