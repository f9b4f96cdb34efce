"""The server as a process: its socket, its signals and its end."""

import contextlib
import functools
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from keras_transfer.errors import KerasTransferError
from keras_transfer.serving.app import Service, build_app
from keras_transfer.serving.connections import Connection
from keras_transfer.serving.settings import Settings

_log = logging.getLogger(__name__)
_BACKLOG = 2048


def serve(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those under way and return.

    Args:
        say: told the address, what changes and why the server ends, in sentences.

    Raises:
        KerasTransferError: the address cannot be listened on.
    """
    listening = _listen(settings)
    host, port = listening.getsockname()[:2]
    say(f"Listening on http://{f'[{host}]' if ':' in host else host}:{port}")
    service = Service(settings, say=say)
    config = uvicorn.Config(
        build_app(service),
        loop="uvloop",
        http=functools.partial(Connection, request_seconds=settings.request_seconds),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=settings.grace_seconds,
    )
    _Server(config, service, say).run(sockets=[listening])
    say("Stopped.")


class _Server(uvicorn.Server):
    """uvicorn's server, for which a signal is a wish to end well and not a death."""

    def __init__(self, config: uvicorn.Config, service: Service, say: Callable[[str], None]):
        super().__init__(config)
        self._service, self._say = service, say

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal. uvicorn's own would raise it once more afterwards."""
        before = {
            number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:  # noqa: ARG002
        self._service.is_stopping = True
        self.should_exit = True


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        address = (settings.host, settings.port)
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise KerasTransferError(
            f"{settings.host}:{settings.port} cannot be listened on",
            expected="an address of this machine and a free port",
            received=str(error),
            fix="give another --host or --port; port 0 takes any free one",
        ) from error
