"""Connections byte by byte: upgrades, half-closed clients and pipelines get one answer each."""

import json
import socket
import time

import pytest
from http_clients import Live, as_base64, http_request

PREDICT = "/v1/models/temples:predict"
INNER = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def statuses(live: Live, *parts: bytes, half_close: bool = False) -> list[int]:
    """Statuses of all responses to the parts, until the server closes or is silent."""
    received = b""
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.02)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        else:
            connection.settimeout(0.3)
        try:
            while data := connection.recv(65536):
                received += data
        except TimeoutError:
            assert not half_close
    return [int(answer[:3]) for answer in received.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0, HTTP/1.1"])
@pytest.mark.parametrize(("path", "status"), [(PREDICT, 400), ("/nope", 404)])
def test_a_body_is_no_second_request_when_an_upgrade_is_asked_for(
    live: Live, protocol: str, path: str, status: int
):
    headers = f"Upgrade: {protocol}\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    request = http_request(path, INNER, headers=f"{headers}HTTP2-Settings: AAMAAABk\r\n")
    body = request.index(b"\r\n\r\n") + 4
    assert statuses(live, request) == [status]
    assert statuses(live, request[:body], request[body:]) == [status]


def test_a_body_with_two_lengths_gets_one_answer_and_the_connection_ends(live: Live):
    headers = "Transfer-Encoding: chunked\r\n"
    assert statuses(live, http_request(PREDICT, b"0\r\n\r\n" + INNER, headers=headers)) == [400]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (INNER, [200]),
        (INNER * 3, [200] * 3),
        (http_request(PREDICT, b"{}"), [400]),
        (http_request(PREDICT, b"{}") + INNER, [400, 200]),
        (INNER + INNER[:-9], [200]),
        (http_request(PREDICT, b"{}")[:-1], []),
        (b"", []),
    ],
)
def test_half_closed_clients_get_the_answers_to_whole_requests(
    live: Live, sent: bytes, expected: list[int]
):
    assert statuses(live, sent, half_close=True) == expected
    assert live.ask("/healthz")[0] == 200


def test_half_closed_clients_get_predictions_that_take_time(live: Live, images: list[bytes]):
    body = json.dumps({"instances": [as_base64(images[0])] * 4}).encode()
    request = http_request(PREDICT, body)
    assert statuses(live, request, half_close=True) == [200]
    assert statuses(live, request * 3, half_close=True) == [200] * 3
