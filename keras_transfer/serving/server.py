"""The server process: its socket, its limits on connections, and its shutdown."""

import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

import uvicorn

from keras_transfer.errors import KerasTransferError
from keras_transfer.serving.app import build_app
from keras_transfer.serving.connection import Connection
from keras_transfer.serving.service import Service
from keras_transfer.serving.settings import Settings

_BACKLOG: Final = 2048
_MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_CONNECTIONS: Final = 900
"""More get the status 503; the number is below the usual limit of 1,024 open files."""
_KEEP_ALIVE_SECONDS: Final = 60
_SWITCH_SECONDS: Final = 5e-4
"""How long a thread waits for another one to give up Python's lock. With Python's 5 ms a prediction
takes ten times as long while clients keep the event loop busy with short requests."""


def serve(settings: Settings, *, report: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then finish the current requests and return.

    Args:
        report: called with a sentence for the address, each change of version, and the end.

    Raises:
        KerasTransferError: the address cannot be used.
    """
    listening = _listen(settings)
    host, port = listening.getsockname()[:2]
    report(f"Listening on http://{f'[{host}]' if ':' in host else host}:{port}")
    clients = settings.folder / "clients"
    programs = f"; programs that send images are in {clients}" if clients.is_dir() else ""
    report(f"Open this address in a browser to try it{programs}. Ctrl-C stops the server.")
    report("The model is loading: until it is served, requests get the status 503.")
    config = uvicorn.Config(
        build_app(Service(settings, report=report)),
        loop="uvloop",
        http=Connection,
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        limit_concurrency=_MAX_CONNECTIONS,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.grace_seconds,
    )
    _run(uvicorn.Server(config), listening)
    report("Stopped.")


def _run(server: uvicorn.Server, listening: socket.socket) -> None:
    """Shuts down gracefully on SIGINT and SIGTERM; threads take turns more often meanwhile."""

    def stop(number: int, frame: Any) -> None:  # noqa: ARG001
        server.should_exit = True

    # After its shutdown uvicorn sends the signal again, which would kill the process.
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        server.run(sockets=[listening])
    finally:
        sys.setswitchinterval(interval)
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        address = (settings.host, settings.port)
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise KerasTransferError(
            f"cannot listen on {settings.host}:{settings.port}",
            expected="an address of this machine and a free port",
            received=str(error),
            fix="give another --host or --port; port 0 takes any free one",
        ) from error
