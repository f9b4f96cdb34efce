"""Connections: uvicorn's, with limits on heads and slow requests, and errors in JSON."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from keras_transfer.serving.protocol import write_json

_MAX_HEAD_BYTES: Final = 64 * 1024


class Connection(HttpToolsProtocol):
    """One connection; a head that is too long or no HTTP, or a slow request, ends it.

    Args:
        request_seconds: how long a request may take to arrive, from the connection or the first
            byte to the last.
    """

    def __init__(self, *args: Any, request_seconds: float, **keywords: Any):
        super().__init__(*args, **keywords)
        self._request_seconds = request_seconds
        self._clock: asyncio.TimerHandle | None = None
        self._num_head_bytes = 0
        self._is_in_head = self._is_in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Half-open connections end as slow requests do."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and watch what is not complete yet."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._is_in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > _MAX_HEAD_BYTES:
                self._refuse(431, f"The head has more than {_MAX_HEAD_BYTES} bytes")
        if self._is_in_head or self._is_in_body:
            self._start_clock()
        else:
            self._stop_clock()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_in_head, self._num_head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A body begins."""
        self._is_in_head, self._is_in_body = False, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request has arrived."""
        self._is_in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Tell in JSON, as everything else is told, that this is no HTTP."""
        self._refuse(400, msg)

    def _start_clock(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(self._request_seconds, self._give_up)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _give_up(self) -> None:
        if self._is_in_head or self._is_in_body:
            words = f"The request did not arrive within {self._request_seconds:g} s"
            self._refuse(408, words)
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        body = write_json({"error": message})
        # A request that is being answered already must not get a second answer.
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            lines = [
                STATUS_LINE[status],
                b"content-type: application/json\r\n",
                b"content-length: %d\r\n" % len(body),
                b"connection: close\r\n\r\n",
                body,
            ]
            self.transport.write(b"".join(lines))
        self.transport.close()
