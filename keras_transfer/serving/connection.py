"""One HTTP/1.1 connection: uvicorn's protocol, which also answers half-closed clients.

It is built on h11, the only parser of uvicorn that limits request heads.
"""

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Answers whole requests of a client that has closed its sending side, then closes.

    uvicorn closes the connection when a client ends its sending side, although it may still read.
    """

    _is_half_closed = False

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection open while a whole request waits for its response."""
        self._is_half_closed = True
        return self._is_answering()

    def on_response_complete(self) -> None:
        """Go on to the next request, or close the connection if no other can come."""
        super().on_response_complete()
        if self._is_half_closed and not self._is_answering() and not self.transport.is_closing():
            self.transport.close()

    def _is_answering(self) -> bool:
        cycle = self.cycle
        return cycle is not None and not (cycle.response_complete or cycle.more_body)
