"""Clients for servers under test: in this process, and over sockets byte by byte."""

import asyncio
import base64
import contextlib
import json
import re
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from keras_transfer.serving.app import build_app
from keras_transfer.serving.service import Service
from keras_transfer.serving.settings import Settings


class InProcess:
    """A service asked without sockets: `with InProcess(settings) as client`."""

    def __init__(self, settings: Settings):
        self.service = Service(settings, report=lambda text: None)
        self.app = build_app(self.service)

    def __enter__(self) -> "InProcess":
        self.service.versions.refresh()
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(self.app)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()
        self.service.stop()

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Ask once."""
        return self._runner.run(self._client.request(method, path, **content))

    def get(self, path: str) -> httpx.Response:
        """GET."""
        return self.request("GET", path)

    def post(self, path: str, **content: Any) -> httpx.Response:
        """POST of `json=` or `content=`."""
        return self.request("POST", path, **content)


def as_base64(data: bytes) -> dict[str, str]:
    """Bytes in the protocol's form."""
    return {"b64": base64.b64encode(data).decode("ascii")}


def claim_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")):
        parts += [struct.pack(">I", len(data)), kind, data]
        parts.append(struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def http_request(path: str, body: bytes, *, method: str = "POST", headers: str = "") -> bytes:
    """A whole request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, f"{headers}\r\n"]).encode() + body


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, Any]:
    """Send a request; the status and JSON of its answer, (0, None) if the connection ended."""
    try:
        writer.write(request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", head)[1])
        return int(head[9:12]), json.loads(await reader.readexactly(length))
    except (OSError, asyncio.IncompleteReadError):
        return 0, None


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@dataclass(frozen=True)
class Live:
    """A server in a process of its own."""

    process: subprocess.Popen
    port: int

    @property
    def memory_megabytes(self) -> float:
        """What it holds in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def ask(self, path: str, content: Any = None) -> tuple[int, Any]:
        """GET, or POST of plain values."""
        method = "GET" if content is None else "POST"
        body = b"" if content is None else json.dumps(content).encode()

        async def once() -> tuple[int, Any]:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                return await exchange(reader, writer, http_request(path, body, method=method))
            finally:
                await hang_up(writer)

        return asyncio.run(once())

    def wait_for(self, condition: Callable[[], bool], *, seconds: float = 90) -> None:
        """Return as soon as the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            assert self.process.poll() is None, "the server ended"
            time.sleep(0.05)

    def version(self) -> str:
        """Number of the version that is available."""
        _, content = self.ask("/v1/models/temples")
        states = content.get("model_version_status", [])
        return next((s["version"] for s in states if s["state"] == "AVAILABLE"), "")
