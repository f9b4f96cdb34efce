"""Connections: uvicorn's, with limits on the head of a request and errors in JSON."""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from keras_transfer.delivery.serving.protocol import write_json

_MAX_HEAD_BYTES: Final = 64 * 1024
HEAD_SECONDS: Final = 15.0
"""How long a request line and its headers may take; half-open connections end after it."""


class Connection(HttpToolsProtocol):
    """One connection; a head that is too long, too slow or no HTTP ends it."""

    _head_bytes = 0
    _is_in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Give the first head its time."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and end a head that grows without end."""
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > _MAX_HEAD_BYTES:
            self.send_400_response(f"The head has more than {_MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        """The head is over, so its clock stops."""
        self._stop_clock()
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes next is another head."""
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Tell what is wrong in JSON, as everything else is told, and close."""
        body = write_json({"error": msg})
        lines = [
            STATUS_LINE[400],
            b"content-type: application/json\r\n",
            b"content-length: %d\r\n" % len(body),
            b"connection: close\r\n\r\n",
            body,
        ]
        self.transport.write(b"".join(lines))
        self.transport.close()

    def _stop_clock(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
