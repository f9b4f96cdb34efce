"""Bodies of requests, read within limits: never more in memory than was said, whatever is sent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import ClientDisconnect, Request

from keras_transfer.delivery.serving.protocol import RefusedError

_NUM_LARGEST: Final = 4
"""How many bodies of the largest size may be in memory at once; small ones are many more."""

_CLOSE: Final = {"Connection": "close"}


class Bodies:
    """Reads bodies of at most `max_bytes` that arrive within `seconds`."""

    def __init__(self, *, max_bytes: int, seconds: float):
        self._max_bytes, self._seconds = max_bytes, seconds
        self._held = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, counted as held while the block runs.

        Raises:
            RefusedError: 413 too large, 415 compressed, 408 too slow, 429 with too many others.
            ClientDisconnect: it ended before its end.
        """
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.strip().lower() not in ("", "identity"):
            raise RefusedError(
                415,
                f"Content-Encoding {encoding[:40]!r} is refused, send plain JSON",
                headers=_CLOSE,
            )
        chunks: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    await self._receive(request, chunks)
            except TimeoutError as error:
                words = f"The body did not arrive within {self._seconds:g} s"
                raise RefusedError(408, words, headers=_CLOSE) from error
            yield b"".join(chunks)
        finally:
            self._held -= sum(map(len, chunks))

    async def _receive(self, request: Request, chunks: list[bytes]) -> None:
        size = 0
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            if size > self._max_bytes:
                await self._discard(request, more)
                limit = self._max_bytes / 1e6
                raise RefusedError(413, f"The body has more than {limit:g} MB", headers=_CLOSE)
            if self._held + len(chunk) > _NUM_LARGEST * self._max_bytes:
                words = "Too many large bodies at once"
                raise RefusedError(429, words, headers={"Retry-After": "1"} | _CLOSE)
            chunks.append(chunk)
            self._held += len(chunk)

    async def _discard(self, request: Request, more: bool) -> None:
        """Let a client that is not far over the limit finish: else it may not hear the answer."""
        left = self._max_bytes
        while more and left > 0:
            message = await request.receive()
            more = message.get("more_body", False)
            left -= len(message.get("body", b""))
