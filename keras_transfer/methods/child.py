"""One function call in a fresh Python process: its own memory, its own TensorFlow, its own end.

What a process has once imported, traced or allocated it keeps, so two contestants in one process
would pay for each other. Arguments and answers travel as JSON; whatever the call prints, and its
traceback if it dies, go to a log.
"""

import importlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_transfer import errors
from keras_transfer.errors import KerasTransferError, RunError

_SHOWN_LINES = 15


def in_child(function: Callable[..., Any], /, *, title: str, log: Path, **arguments: Any) -> Any:
    """Call a module's function with these arguments in a process of its own and wait for it.

    Args:
        function: takes and returns JSON values only.
        title: what the call is, for the error.
        log: the child's output is added to this file.

    Raises:
        KerasTransferError: the very error that the function raised.
        RunError: the child ended without an answer; `received` has the end of its traceback.
    """
    target = f"{function.__module__}:{function.__qualname__}"
    with tempfile.TemporaryDirectory() as scratch, log.open("ab") as stream:
        answer = Path(scratch) / "answer.json"
        start = log.stat().st_size
        child = subprocess.run(
            [sys.executable, "-m", __name__, target, str(answer)],
            input=json.dumps(arguments).encode(),
            stdout=stream,
            stderr=stream,
            check=False,
        )
        reply = json.loads(answer.read_text()) if child.returncode == 0 else None
    if reply is None:
        raise _crash(title, child.returncode, log.read_bytes()[start:])
    if "error" in reply:
        raise getattr(errors, reply["error"])(**reply["parts"])
    return reply["value"]


def peak_mb() -> float:
    """The largest resident memory this process has had so far, in 10^6 bytes.

    Everything resident counts: Python, TensorFlow and its arrays, and mapped files as far as they
    were in memory. Memory on an accelerator does not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        # Not `getrusage`: on Linux a child inherits the peak of the parent that started it.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def _crash(title: str, status: int, output: bytes) -> RunError:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
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


if __name__ == "__main__":
    _answer()
