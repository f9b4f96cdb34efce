"""One function call in a fresh Python process: its own memory, its own TensorFlow, its own end.

What a process has once imported, traced or allocated it keeps, so two contestants in one process
would pay for each other. Arguments and answers travel as JSON; whatever the call prints, and its
traceback if it dies, go to a log.
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

from keras_transfer import errors
from keras_transfer.errors import KerasTransferError, RunError

_SHOWN_LINES = 15
_POLL_SECONDS = 0.5


class SubprocessCall:
    """A module's function at work in a process of its own.

    `ended` and `was_killed` (by a signal, not by an error of its own) can be asked at any time.
    """

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
        """Start it.

        Args:
            function: takes and returns JSON values only.
            title: what the call is, for the error.
            log: the child's output is added to this file.
            environment: variables beside those of this process.
            on_terminal: show its standard output; standard error goes to the log.
        """
        self._title, self._log = title, log
        self._scratch = tempfile.TemporaryDirectory()
        self._reply = Path(self._scratch.name) / "answer.json"
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
        # A child that died at once has closed its end; how it died is told by `answer`.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(json.dumps(arguments).encode())

    @property
    def ended(self) -> bool:
        """Whether it came to its end, good or bad."""
        return self._process.poll() is not None

    @property
    def ended_well(self) -> bool:
        """Whether its function returned; not so if it raised an error, or the process crashed."""
        is_over = self.ended and self._process.returncode == 0
        return is_over and "error" not in json.loads(self._reply.read_text())

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it."""
        return self.ended and self._process.returncode < 0

    @property
    def ending(self) -> str:
        """The signal or status that it ended with."""
        status = self._process.returncode
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def answer(self) -> Any:
        """Wait for the end; what the function returned.

        Raises:
            KerasTransferError: the very error that the function raised.
            RunError: the child ended without an answer; `received` has the end of its traceback.
        """
        status = self._process.wait()
        reply = json.loads(self._reply.read_text()) if status == 0 else None
        self._scratch.cleanup()
        if reply is None:
            with self._log.open("rb") as stream:
                stream.seek(self._start)
                raise _crash(self._title, self.ending, stream.read())
        if "error" in reply:
            raise getattr(errors, reply["error"])(**reply["parts"])
        return reply["value"]

    def stop(self) -> None:
        """End it if it has not ended by itself."""
        if not self.ended:
            self._process.kill()
            self._process.wait()
        self._scratch.cleanup()


def call_in_subprocess(
    function: Callable[..., Any], /, *, title: str, log: Path, **arguments: Any
) -> Any:
    """Call a module's function with these arguments in a process of its own and wait for it.

    Arguments, answer and errors are those of `SubprocessCall`.
    """
    child = SubprocessCall(function, title=title, log=log, **arguments)
    try:
        return child.answer()
    finally:
        child.stop()


def end_with_parent(parent: int) -> None:
    """From now on, end this process as soon as its parent is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def peak_mb() -> float:
    """The largest resident memory this process has had so far, in 10^6 bytes.

    Everything resident counts: Python, TensorFlow and its arrays, and mapped files as far as they
    were in memory. Memory on an accelerator does not.
    """
    # Not `getrusage`: on Linux a child inherits the peak of the parent that started it.
    if fields := _status():
        return _megabytes(fields["VmHWM"])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def resident_mb() -> float:
    """The resident memory of this process now, in 10^6 bytes; elsewhere than on Linux its peak."""
    fields = _status()
    return _megabytes(fields["VmRSS"]) if fields else peak_mb()


def _status() -> dict[str, str]:
    """What Linux knows of this process, by name; nothing elsewhere."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return {}
    return dict(line.split(":", 1) for line in status.read_text().splitlines())


def _megabytes(text: str) -> float:
    return int(text.split()[0]) * 1024 / 1e6


def _crash(title: str, ended: str, output: bytes) -> RunError:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    tail = "".join(f"\n    {line}" for line in lines[-_SHOWN_LINES:])
    return RunError(
        f"{title} crashed",
        expected="a process that ends with an answer",
        received=f"{ended}{', its last words:' if tail else ''}{tail}",
        fix="mend what it names; if memory ran out (SIGKILL is a sign of that), lower "
        "data.image_size or training.batch_size",
    )


def _answer() -> None:
    """The child's side: read the arguments, call, write the answer."""
    target, file = sys.argv[1:]
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
        os._exit(0)  # A host of JAX's would wait on its way out for others, who wait for it.


if __name__ == "__main__":
    _answer()
