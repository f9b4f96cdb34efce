"""A thousand malformed requests among valid ones, on a live server with low limits."""

import asyncio
import contextlib
import gzip
import json
import random
from collections.abc import Callable

import numpy as np
import pytest
from http_clients import Live, as_base64, claim_png, exchange, hang_up, http_request

NUM_MALFORMED = 1_000
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
        if writer is None or writer.is_closing():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if count % 10 == 0:
            row = r.randrange(len(images))
            body = json.dumps({"instances": [as_base64(images[row])]}).encode()
            status, content = await exchange(reader, writer, http_request(PREDICT, body))
            answer = content["predictions"][0]["probabilities"] if status == 200 else None
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


@pytest.mark.slow
def test_a_thousand_malformed_requests_do_not_disturb_valid_ones(
    live: Live, images: list[bytes], probabilities: np.ndarray
):
    small = [row for row, data in enumerate(images) if len(data) < 60_000]
    chosen, expected = [images[row] for row in small], probabilities[small]

    async def run(requests: int) -> list[str]:
        each = requests // NUM_CLIENTS
        clients = [
            misbehave(live.port, number, each, chosen, expected) for number in range(NUM_CLIENTS)
        ]
        return [fault for faults in await asyncio.gather(*clients) for fault in faults]

    faults = asyncio.run(run(NUM_MALFORMED // 5))
    before = live.memory_megabytes
    faults += asyncio.run(run(NUM_MALFORMED))
    assert faults == []
    assert live.process.poll() is None
    assert live.memory_megabytes - before < 30
    _, status = live.ask("/v1/models/temples")
    assert status["model_version_status"][0]["state"] == "AVAILABLE"


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
