"""A load generator that needs little CPU time: prepared requests, no HTTP library.

Usage: `python -m pipelines.benchmarks.server_load PORT PATH FILE…`. Each line of JSON on standard
input is a job, and gives a line of JSON on standard output:

    {"clients": 32, "seconds": 5}   32 clients, each sending its next request after a response
    {"rate": 100, "seconds": 5}     100 requests per second at fixed times

The result is {"latencies": [seconds, …], "seconds": 5.01, "failures": 0}. A latency starts when the
request was due, not when a connection was free.
"""

import asyncio
import base64
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

_WARM_UP: Final = 0.2
"""Warm-up before each job, as a share of its seconds."""


def build_request(path: str, body: bytes, *, host: str = "127.0.0.1") -> bytes:
    """An HTTP request on a connection that is kept alive."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


def predict_body(image: bytes) -> bytes:
    """The body of a request with one image."""
    encoded = base64.b64encode(image).decode("ascii")
    return json.dumps({"instances": [{"b64": encoded}]}).encode("ascii")


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._missing = -1
        self._done: Callable[[int], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, done: Callable[[int], None]) -> None:
        """Send a request; `done` gets the status of the response, 0 for none."""
        self._done = done
        if self._transport.is_closing():
            self._finish(0)
        else:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Wait for the length in the response's head."""
        if self._missing < 0:
            self._received += data
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._received[:end]).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            self._missing = end + 4 + length - len(self._received)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            status = int(self._received[9:12])
            self._received.clear()
            self._missing = -1
            self._finish(status)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Report that there is no response."""
        self._finish(0)

    def close(self) -> None:
        """End the connection."""
        self._done = None
        self._transport.close()

    def _finish(self, status: int) -> None:
        if self._done is not None:
            done, self._done = self._done, None
            done(status)


class _Record:
    """Latencies of the requests that were due after the warm-up."""

    def __init__(self, seconds: float):
        self.begin = time.perf_counter() + _WARM_UP * seconds
        self.end = self.begin + seconds
        self.latencies: list[float] = []
        self.num_in_time = 0
        self.failures = 0

    def note(self, due: float, status: int) -> None:
        now = time.perf_counter()
        if status != 200:
            self.failures += 1
            return
        if self.begin <= due < self.end:
            self.latencies.append(now - due)
        self.num_in_time += self.begin <= now < self.end

    def to_dict(self) -> dict[str, Any]:
        return {
            "latencies": self.latencies,
            "answered": self.num_in_time,
            "seconds": self.end - self.begin,
            "failures": self.failures,
        }


async def _closed_loop(port: int, requests: Iterator[bytes], job: dict[str, Any]) -> dict[str, Any]:
    """Clients that send the next request after each response."""
    clients = [await _connect(port) for _ in range(job["clients"])]
    record = _Record(job["seconds"])
    idle: asyncio.Queue[Client] = asyncio.Queue()

    def send_next(client: Client) -> None:
        due = time.perf_counter()

        def done(status: int) -> None:
            record.note(due, status)
            if status and time.perf_counter() < record.end:
                send_next(client)
            else:
                idle.put_nowait(client)

        client.send(next(requests), done)

    for client in clients:
        send_next(client)
    for _ in clients:
        (await idle.get()).close()
    return record.to_dict()


async def _open_loop(port: int, requests: Iterator[bytes], job: dict[str, Any]) -> dict[str, Any]:
    """Requests at fixed times, each on a free connection."""
    free = [await _connect(port) for _ in range(8)]
    record = _Record(job["seconds"])
    pending: set[Client] = set()
    started = time.perf_counter()
    for number in itertools.count():
        due = started + number / job["rate"]
        if due >= record.end:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        client = free.pop() if free else await _connect(port)
        pending.add(client)

        def done(status: int, client: Client = client, due: float = due) -> None:
            record.note(due, status)
            pending.discard(client)
            free.append(client)

        client.send(next(requests), done)
    while pending:
        await asyncio.sleep(0.01)
    for client in free:
        client.close()
    return record.to_dict()


async def _connect(port: int) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client


def main(port: str, path: str, *files: str) -> None:
    """Run the jobs on standard input, one after the other."""
    import uvloop

    requests = itertools.cycle(
        [build_request(path, predict_body(Path(file).read_bytes())) for file in files]
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            job = json.loads(line)
            loop = _closed_loop if "clients" in job else _open_loop
            result = runner.run(loop(int(port), requests, job))
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
