"""Which hosts and which pages of other sites may ask, and the headers of responses."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from http_clients import InProcess
from starlette.datastructures import Headers

from keras_transfer.serving.origins import check_headers
from keras_transfer.serving.protocol import RefusedError
from keras_transfer.serving.settings import Settings

PREDICT = "/v1/models/temples:predict"


def status(method: str, given: dict[str, str], **settings: str) -> int:
    """403 or 400 if these headers are refused, else 200."""
    try:
        check_headers(
            Headers({"host": "127.0.0.1:8501"} | given),
            Settings(folder=Path("export"), **settings),
            method=method,
        )
    except RefusedError as error:
        return error.status_code
    return 200


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:80", "a.localhost:1", "127.0.0.1:9", "127.9.9.9", "[::1]:8501"],
)
def test_a_server_on_this_machine_has_the_names_of_this_machine(host: str):
    for listening in ("127.0.0.1", "::1", "localhost"):
        assert status("GET", {"host": host}, host=listening) == 200


FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8501",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil.example@127.0.0.1",
    "127.0.0.1@evil.example",
    "192.168.0.7:8501",
    "0.0.0.0:8501",
    "[fe80::1]",
    "127.0.0.1:80:80",
    "::1",
    "",
    "127.0.0.1, evil.example",
    "127.0.0.1/evil",
]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_other_names_are_refused_on_this_machine(host: str):
    assert status("GET", {"host": host}) == 403
    assert status("POST", {"host": host, "origin": f"http://{host}"}) == 403


def test_names_may_be_added_and_limited():
    listed = {"allow_hosts": "Models.Example, b.example"}
    for host in ("models.example", "B.EXAMPLE:443", "localhost"):
        assert status("GET", {"host": host}, **listed) == 200
    assert status("GET", {"host": "evil.example"}, **listed) == 403
    assert status("GET", {"host": "any.example"}, host="0.0.0.0") == 200
    everywhere = listed | {"host": "0.0.0.0"}
    assert status("GET", {"host": "evil.example"}, **everywhere) == 403
    assert status("GET", {"host": "10.0.0.3:8501"}, **everywhere) == 200  # As probes ask.


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"origin": "http://127.0.0.1:8501"},
        {"origin": "HTTP://127.0.0.1:8501"},
        {"origin": "https://models.example", "sec-fetch-site": "same-origin"},  # Behind a proxy.
        {"sec-fetch-site": "none"},
        {"content-type": "text/plain"},
    ],
)
def test_programs_and_the_page_itself_may_ask(given: dict[str, str]):
    assert status("POST", given) == 200


FOREIGN_PAGES = [
    {"origin": "https://evil.example"},
    {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://127.0.0.1:3000", "sec-fetch-site": "same-site"},
    {"origin": "http://127.0.0.1"},
    {"origin": "http://localhost:8501"},
    {"origin": "http://127.0.0.1:8501.evil.example"},
    {"origin": "file://"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("given", FOREIGN_PAGES)
def test_pages_of_other_sites_are_refused(given: dict[str, str]):
    for content_type in ("text/plain", "application/json", "application/x-www-form-urlencoded"):
        assert status("POST", given | {"content-type": content_type}) == 403


def test_origins_may_be_allowed():
    listed = {"allow_origins": "https://A.example, http://localhost:3000"}
    for origin in ("https://a.example", "http://localhost:3000"):
        assert status("POST", {"origin": origin}, **listed) == 200
    for origin in ("http://a.example", "https://a.example:444", "https://b.example", "null"):
        assert status("POST", {"origin": origin}, **listed) == 403
    assert status("POST", {"origin": "https://b.example"}, allow_origins="*") == 200


def test_a_body_with_two_lengths_is_refused():
    assert status("POST", {"content-length": "5", "transfer-encoding": "chunked"}) == 400


@pytest.fixture(scope="module")
def client(run_folder: Path) -> Iterator[InProcess]:
    with InProcess(Settings(folder=run_folder / "export")) as client:
        yield client


def test_refusals_are_json_and_are_counted(client: InProcess):
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        response = client.post(PREDICT, content=b"{}", headers=headers)
        assert response.status_code == 403
        assert list(response.json()) == ["error"]
        assert "access-control-allow-origin" not in response.headers
    counted = 'keras_transfer_requests_total{route="other",status="403"} 2.0'
    assert counted in client.get("/metrics").text


def test_every_response_has_the_headers_of_its_kind(client: InProcess):
    for path in ("/", "/card", "/metrics", "/healthz", "/openapi.json", "/nope", PREDICT):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_allowed_pages_can_read_every_response(run_folder: Path):
    settings = Settings(folder=run_folder / "export", allow_origins="https://a.example")
    asked = {"Origin": "https://a.example"}
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    with InProcess(settings) as client:
        response = client.request("OPTIONS", PREDICT, headers=asked | preflight)
        assert response.status_code == 200
        assert response.headers["access-control-allow-headers"].lower().count("content-type")
        for answer in (
            response,
            client.request("GET", "/card", headers=asked),
            client.post(PREDICT, content=b"{", headers=asked),
        ):
            assert answer.headers["access-control-allow-origin"] == "https://a.example"
            assert "origin" in answer.headers["vary"].lower()
        other = {"Origin": "https://b.example"}
        assert client.request("OPTIONS", PREDICT, headers=other | preflight).status_code == 403
