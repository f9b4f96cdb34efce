"""A thousand malformed requests among valid ones, on a live server with low limits.

MALFORMED_REQUESTS=20000 sends more, and compares how long a valid one takes meanwhile and among as
many valid ones.
"""

import asyncio
import contextlib
import gzip
import itertools
import json
import multiprocessing
import os
import random
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from http_clients import Live, as_base64, claim_png, exchange, hang_up, http_request

NUM_MALFORMED = int(os.environ.get("MALFORMED_REQUESTS", "1000"))
NUM_ROUNDS, ROUND_SECONDS = 5, 5
"""Of the measurement."""
NUM_CLIENTS = 12
PREDICT = "/v1/models/temples:predict"


def makers(images: list[bytes]) -> list[Callable[[random.Random], bytes]]:
    """Each makes a malformed request of one kind."""
    jpeg, png, gif = images[0], images[1], images[4]
    good = json.dumps({"instances": [as_base64(jpeg)]}).encode()

    def predict(content: object) -> bytes:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return http_request(PREDICT, body)

    def image(data: bytes) -> bytes:
        return predict({"instances": [as_base64(data)]})

    wrong = [None, True, 0, -1, 1e308, "", "x", [], {}, [[]], {"b64": 1}, {"b64": "é"}, "\ud800"]
    bomb = gzip.compress(bytes(3_000_000))
    return [
        lambda r: predict(good[: r.randrange(len(good))]),
        lambda r: predict({r.choice(["instances", "inputs"]): r.choice(wrong)}),
        lambda r: predict({"instances": [r.choice(wrong), r.choice(wrong)]}),
        lambda r: predict({"inputs": {r.choice(["image_bytes", "x"]): [r.choice(wrong)]}}),
        lambda r: predict({"signature_name": r.choice([*wrong[1:], "nope"]), "instances": [wrong]}),
        lambda r: predict({"signature_name": "serving_pixels", "instances": [r.choice(wrong)]}),
        lambda r: predict({"signature_name": "serving_resized", "instances": [[[[r.random()]]]]}),
        lambda r: predict(
            {
                "signature_name": "serving_explain",
                "instances": [{"image_bytes": as_base64(jpeg), "class_index": r.choice(wrong[:2])}],
            }
        ),
        lambda r: predict({"instances": [as_base64(jpeg)] * r.randrange(9, 12)}),
        lambda r: predict(r.randbytes(r.randrange(2000))),
        lambda r: predict(
            b'{"instances": [' + r.choice([b"NaN", b"-Infinity", b"9" * 6000, b"1e"])
        ),
        lambda r: predict(r.choice([b"[", b'{"a":']) * r.randrange(2000, 20_000)),
        lambda r: predict(b" " * r.randrange(300_001, 400_000)),
        lambda r: image(claim_png(r.randrange(1001, 60_001), r.randrange(1000, 60_001))),
        lambda r: image(claim_png(900, 900)),
        lambda r: image(b"\xff\xd8\xff" + r.randbytes(300)),
        lambda r: image(b"\x89PNG\r\n\x1a\n" + r.randbytes(300)),
        lambda r: image(b"GIF89a" + r.randbytes(300)),
        lambda r: image(b"BM" + r.randbytes(300)),
        lambda r: image(b"RIFF" + r.randbytes(4) + b"WEBP" + r.randbytes(300)),
        lambda r: image(png[: r.randrange(12, len(png) // 2)]),
        lambda r: image(gif[: r.randrange(6, len(gif) // 2)]),
        lambda r: image(bomb),
        lambda r: image(jpeg[:2] + b"\xff" * 100_000 + jpeg[2:]),
        lambda r: image(png[:33] + b"\0\0\0\0prVt\x3e\x5f\x47\x7e" * 8_000 + png[33:]),
        lambda r: http_request(PREDICT, bomb, headers="Content-Encoding: gzip\r\n"),
        lambda r: http_request(f"/v1/models/{r.randrange(99)}:predict", good),
        lambda r: http_request(
            f"/v1/models/temples/versions/{r.randrange(2, 10**18)}:predict", good
        ),
        lambda r: http_request(
            f"/v1/models/temples:{r.choice(['regress', 'classify', '%00'])}", good
        ),
        lambda r: http_request(PREDICT, good, method=r.choice(["PUT", "DELETE", "GET", "PATCH"])),
    ]


def noise(r: random.Random) -> bytes:
    """Not HTTP, or incomplete."""
    return r.choice(
        [
            r.randbytes(200),
            b"GET / HTTP/99\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000,
            b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nhalf",
            b"POST",
        ]
    )


def framings(image: bytes) -> list[tuple[bytes, list[set[int]]]]:
    """Bytes for a connection whose sending side is then closed, and the statuses they may get.

    Valid, doubtful and invalid ways to say where a request ends. Each response is to one request.
    """
    body = json.dumps({"instances": [as_base64(image)]}).encode()
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    get = http_request("/healthz", b"", method="GET")
    good, bad, lost = {200}, {400}, {0}

    def post(headers: str, content: bytes, *, length: bool = False) -> bytes:
        lines = [f"POST {PREDICT} HTTP/1.1", "Host: 127.0.0.1", *filter(None, [headers])]
        lines += [f"Content-Length: {len(content)}"] if length else []
        return "\r\n".join([*lines, "\r\n"]).encode() + content

    chunked = "Transfer-Encoding: chunked"
    return [
        (post("", body, length=True) + get, [good, good]),
        (post("Connection: Upgrade\r\nUpgrade: h2c", body, length=True) + get, [good, good]),
        (post("Connection: Upgrade\r\nUpgrade: websocket", body, length=True), [good]),
        (post("Expect: 100-continue", body, length=True) + get, [good, good]),
        (post(chunked, chunks) + get, [good, good]),
        (post(chunked, b"0;a=b\r\nX: y\r\n\r\n") + get, [bad, good]),
        (post(chunked, chunks, length=True) + get, [bad]),
        (post("Transfer-Encoding: xchunked", chunks) + get, [bad]),
        (post("Transfer-Encoding: gzip, chunked", chunks) + get, [bad]),
        (post(f"{chunked}\r\nTransfer-Encoding: identity", chunks) + get, [bad]),
        (post("Content-Length: 5", body, length=True) + get, [bad]),
        (post("Content-Length: +9", body) + get, [bad]),
        (post("Content-Length : 9", body) + get, [bad]),
        (post(chunked, b"-1\r\n" + body) + get, [bad]),
        (post(chunked, b"g\r\n" + body) + get, [bad]),
        (post(chunked, b"5\r\nabcdefgh\r\n0\r\n\r\n") + get, [bad]),
        (post(chunked, b"f" * 40 + b"\r\n" + body) + get, [bad]),
        (post("Host: b.example", body, length=True) + get, [bad]),
        (post("", b"", length=True) + get, [bad, good]),
        (http_request("/none", body) + get, [{404}, good]),
        (http_request("/healthz", body) + get, [{405}, good]),
        (post("Origin: http://b.example", body, length=True) + get, [{403}, good]),
        (post("", body, length=True)[:-9], [lost]),
        (post(chunked, b"ffff\r\nabc"), [lost]),
        (get * 20, [good] * 20),
    ]


def statuses(received: bytes) -> list[int]:
    """The statuses of the responses in what a connection has received; others are errors."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        found.append(int(head[9:12]))
        if match := re.search(rb"(?i)content-length: (\d+)", head):
            received = rest[int(match[1]) :]
        elif found[-1] == 100:
            found.pop()
            received = rest
        else:  # The plain text of a refusal, up to the end of the connection.
            received = b""
    return found


async def send_framing(port: int, r: random.Random, image: bytes) -> str:
    """What is wrong with the responses to one of `framings`, '' if nothing is."""
    number, (data, expected) = r.choice(list(enumerate(framings(image))))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    with contextlib.suppress(OSError):
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        async with asyncio.timeout(60):
            received = await reader.read()
    await hang_up(writer)
    found = statuses(received) or [0]
    is_expected = len(found) == len(expected) and all(
        status in one for status, one in zip(found, expected, strict=True)
    )
    return "" if is_expected else f"framing {number}: {found}"


async def send_noise(port: int, r: random.Random) -> int:
    """Status of the response to `noise`; some clients hang up at once, others wait."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    with contextlib.suppress(OSError):
        writer.write(noise(r))
        await writer.drain()
        if r.random() < 0.2:
            async with asyncio.timeout(3):
                answer = await reader.read()
    await hang_up(writer)
    return int(answer[9:12]) if answer else 0


async def misbehave(
    port: int, number: int, requests: int, images: list[bytes], expected: np.ndarray
) -> list[str]:
    """One client's requests, one after the other; returns what was wrong with the responses."""
    r = random.Random(number)
    kinds, faults = makers(images), []
    reader = writer = None
    for count in range(requests):
        if count % 40 == 17:
            status = await send_noise(port, r)
            if status and not 400 <= status < 500:
                faults.append(f"noise: {status}")
            continue
        if count % 10 == 3:
            faults += filter(None, [await send_framing(port, r, images[0])])
            continue
        if writer is None or writer.is_closing():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if count % 10 == 0:
            row = r.randrange(len(images))
            body = json.dumps({"instances": [as_base64(images[row])]}).encode()
            status, content = await exchange(reader, writer, http_request(PREDICT, body))
            answer = content["predictions"][0]["probabilities"] if status == 200 else None
            # Batches of another size are computed by other kernels.
            if answer is None or np.abs(answer - expected[row]).max() > 1e-6:
                faults.append(f"good image {row}: {status} {content}")
            continue
        kind = r.randrange(len(kinds))
        status, content = await exchange(reader, writer, kinds[kind](r))
        if not 400 <= status < 500 or list(content) != ["error"]:
            faults.append(f"kind {kind}: {status} {content}")
        if status in (0, 413, 415):
            await hang_up(writer)
    if writer is not None:
        await hang_up(writer)
    return faults


def sent(port: int, requests: int, images: list[bytes], expected: np.ndarray) -> list[str]:
    """What was wrong with the responses to requests of several clients."""

    async def run() -> list[str]:
        each = requests // NUM_CLIENTS
        clients = [misbehave(port, number, each, images, expected) for number in range(NUM_CLIENTS)]
        return [fault for faults in await asyncio.gather(*clients) for fault in faults]

    return asyncio.run(run())


@pytest.fixture(scope="module")
def small(images: list[bytes], probabilities: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Images that fit into a request, and their probabilities."""
    rows = [row for row, data in enumerate(images) if len(data) < 60_000]
    return [images[row] for row in rows], probabilities[rows]


@pytest.mark.slow
def test_a_thousand_malformed_requests_do_not_disturb_valid_ones(live: Live, small):
    faults = sent(live.port, NUM_MALFORMED // 5, *small)
    before = live.memory_megabytes
    faults += sent(live.port, NUM_MALFORMED, *small)
    assert faults == []
    assert live.process.poll() is None
    assert live.memory_megabytes - before < 30
    _, status = live.ask("/v1/models/temples")
    assert status["model_version_status"][0]["state"] == "AVAILABLE"


def send_until(end: float, port: int, num_clients: int, *small: Any, valid: bool = False) -> None:
    """Several clients that send without pause, in a process of its own."""

    async def misbehave_until(number: int) -> None:
        while time.time() < end:
            faults = await misbehave(port, number, 20, *small)
            assert faults == []
            number += num_clients

    async def run() -> None:
        clients = (
            ask_until(end, port, small[0][0]) if valid else misbehave_until(number)
            for number in range(num_clients)
        )
        await asyncio.gather(*clients)

    asyncio.run(run())


async def ask_until(end: float, port: int, image: bytes) -> list[float]:
    """The seconds that each valid request takes, one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"instances": [as_base64(image)]}).encode()
    seconds = []
    while time.time() < end:
        start = time.perf_counter()
        status, _ = await exchange(reader, writer, http_request(PREDICT, body))
        assert status == 200
        seconds.append(time.perf_counter() - start)
    await hang_up(writer)
    return seconds


@pytest.mark.slow
@pytest.mark.skipif(NUM_MALFORMED <= 1000, reason="takes minutes: set MALFORMED_REQUESTS")
def test_a_valid_request_waits_no_longer_than_among_valid_ones(live: Live, small):
    """Clients without a pause share two cores with the server: what others cost is the measure."""
    slowest: dict[str, list[float]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        pool.submit(len, "").result()
        for _ in range(NUM_ROUNDS):
            for num_clients, kind in itertools.product((0, 1, 4, 12), ("valid", "malformed")):
                end = time.time() + ROUND_SECONDS
                words = (end, live.port, num_clients, *small)
                others = pool.submit(send_until, *words, valid=kind == "valid")
                seconds = asyncio.run(ask_until(end, live.port, small[0][0]))
                others.result()
                name = f"{num_clients} {kind}" if num_clients else "alone"
                slowest.setdefault(name, []).append(statistics.quantiles(seconds, n=100)[-1])
    medians = {name: 1e3 * statistics.median(values) for name, values in slowest.items()}
    for name, value in medians.items():
        print(f"{name}: 99th percentile {value:.0f} ms, × {value / medians['alone']:.1f}")  # noqa: T201
    for number in (1, 4, 12):
        assert medians[f"{number} malformed"] <= 3 * medians[f"{number} valid"]


def test_a_request_body_that_stops_gets_408(live: Live):
    async def send() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(
            f"POST {PREDICT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nhalf".encode()
        )
        async with asyncio.timeout(20):
            received = await reader.read()
        await hang_up(writer)
        return received

    received = asyncio.run(send())
    assert received.startswith(b"HTTP/1.1 408")
    assert b'{"error":"The request did not arrive within 2 s"}' in received


def test_a_head_that_is_too_long_is_refused(live: Live):
    async def send() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 70_000)
        async with asyncio.timeout(20):
            received = await reader.read()
        await hang_up(writer)
        return received

    assert asyncio.run(send()).startswith(b"HTTP/1.1 400")


def test_a_chunked_body_is_limited_while_it_arrives(live: Live):
    async def send() -> tuple[int, object]:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunks = b"".join([b"c350\r\n" + b" " * 50_000 + b"\r\n"] * 8) + b"0\r\n\r\n"
        async with asyncio.timeout(20):
            result = await exchange(reader, writer, head.encode() + chunks)
        await hang_up(writer)
        return result

    status, content = asyncio.run(send())
    assert (status, content) == (413, {"error": "The body has more than 0.3 MB"})
