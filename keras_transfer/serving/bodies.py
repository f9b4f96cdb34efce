"""Bodies of requests, read within limits: never more in memory than was said, whatever is sent."""

from typing import Final

from starlette.requests import ClientDisconnect, Request

from keras_transfer.serving.protocol import RefusedError

_NUM_LARGEST: Final = 4
"""How many bodies of the largest size may be in memory at once; small ones are many more."""

_CLOSE: Final = {"Connection": "close"}


class Bodies:
    """Reads bodies of at most `max_bytes`, and counts those that are held in memory."""

    def __init__(self, *, max_bytes: int):
        self._max_bytes = max_bytes
        self._num_held = 0

    async def read(self, request: Request) -> bytes:
        """The body; it counts as held until it is handed to `release`.

        Raises:
            RefusedError: 413 too large, 415 compressed, 429 with too many others.
            ClientDisconnect: it ended before its end.
        """
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.strip().lower() not in ("", "identity"):
            words = f"Content-Encoding {encoding[:40]!r} is refused, send plain JSON"
            raise RefusedError(415, words, headers=_CLOSE)
        body = bytearray()
        try:
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = message.get("body", b""), message.get("more_body", False)
                await self._check_room(request, len(body) + len(chunk), len(chunk), more)
                body += chunk
                self._num_held += len(chunk)
        except BaseException:
            self.release(body)
            raise
        return bytes(body)

    def release(self, body: bytes | bytearray) -> None:
        """Forget a body."""
        self._num_held -= len(body)

    async def _check_room(self, request: Request, size: int, added: int, more: bool) -> None:
        if size > self._max_bytes:
            await self._discard(request, more)
            limit = self._max_bytes / 1e6
            raise RefusedError(413, f"The body has more than {limit:g} MB", headers=_CLOSE)
        if self._num_held + added > _NUM_LARGEST * self._max_bytes:
            words = "Too many large bodies at once"
            raise RefusedError(429, words, headers={"Retry-After": "1"} | _CLOSE)

    async def _discard(self, request: Request, more: bool) -> None:
        """Let a client that is not far over the limit finish: else it may not hear the answer."""
        left = self._max_bytes
        while more and left > 0:
            message = await request.receive()
            more = message.get("more_body", False)
            left -= len(message.get("body", b""))
