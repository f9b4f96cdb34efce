"""Limits on pixels: how many a request may have, and that requests with many take turns."""

import asyncio
import io
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from http_clients import InProcess, as_base64, claim_png
from PIL import Image

from keras_transfer.serving.settings import Settings

PREDICT = "/v1/models/temples:predict"
BOTH = [
    lambda images: {"instances": images},
    lambda images: {
        "signature_name": "serving_explain",
        "inputs": {"image_bytes": images, "class_index": [-1] * len(images)},
    },
]
"""The bodies of a prediction and of an explanation."""


@pytest.fixture(scope="module")
def settings(run_folder: Path) -> Settings:
    return Settings(folder=run_folder / "export", max_request_megapixels=8)


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[InProcess]:
    with InProcess(settings) as client:
        yield client


def flat(kind: str, side: int = 1000) -> bytes:
    """An image of one colour: few bytes, many pixels."""
    buffer = io.BytesIO()
    others = {"save_all": True, "append_images": [Image.new("RGB", (side, side))]}
    options = others if kind in ("GIF", "WEBP") else {}
    Image.new("RGB", (side, side), (9, 90, 200)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("body", BOTH)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_too_many_pixels_in_a_request_are_refused_before_any_is_decoded(client, body, kind):
    images = [as_base64(flat(kind))] * 9
    began = time.process_time()
    response = client.post(PREDICT, json=body(images))
    assert time.process_time() - began < 0.2
    assert response.status_code == 422
    words = "The images take 9.0 megapixels, of at most 8; send fewer in each request"
    assert words in response.json()["error"]


@pytest.mark.parametrize("body", BOTH)
def test_a_bad_header_is_found_before_other_images_are_decoded(client, body):
    images = [as_base64(flat("PNG"))] * 7 + [as_base64(claim_png(5000, 5000))]
    began = time.process_time()
    response = client.post(PREDICT, json=body(images))
    assert time.process_time() - began < 0.2
    assert response.status_code == 422
    assert response.json()["error"].partition("[7]: ")[2].startswith("5000 × 5000 px is more")


@pytest.mark.parametrize("body", BOTH)
def test_many_pixels_within_the_limit_are_predicted(client, body):
    response = client.post(PREDICT, json=body([as_base64(flat("PNG"))] * 6))
    assert response.status_code == 200


def test_one_image_may_have_the_pixels_of_its_own_limit(run_folder: Path):
    strict = Settings(folder=run_folder / "export", max_request_megapixels=0.5)
    with InProcess(strict) as client:
        one = {"instances": [as_base64(flat("PNG"))]}
        assert client.post(PREDICT, json=one).status_code == 200
        assert client.post(PREDICT, json={"instances": one["instances"] * 2}).status_code == 422


def test_scans_of_a_jpeg_count_as_pixels(client):
    with client.service.versions.use("temples") as version:
        rows = version.images
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", progressive=True)
    usual = buffer.getvalue()
    scan = usual.rindex(b"\xff\xda")
    many = usual[:scan] + usual[scan:-2] * 200 + usual[-2:]
    assert rows.header(as_base64(usual)) == (usual, 1600)
    assert rows.header(as_base64(many))[1] == 1600 * 20


def ask_together(client: InProcess, *bodies: dict) -> list[tuple[int, float]]:
    """The status of each response and when it came; the bodies are sent in their order."""

    async def ask(body: dict) -> tuple[int, float]:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as one:
            response = await one.post(PREDICT, json=body, timeout=60)
        return response.status_code, time.monotonic()

    async def ask_all() -> list[tuple[int, float]]:
        return await asyncio.gather(*map(ask, bodies))

    return asyncio.run(ask_all())


@pytest.mark.parametrize("body", BOTH)
def test_small_requests_do_not_wait_for_large_ones(run_folder: Path, images: list[bytes], body):
    with InProcess(Settings(folder=run_folder / "export")) as client:
        large = body([as_base64(flat("PNG"))] * 25)
        small = [body([as_base64(images[row])]) for row in range(4)]
        first, *others = ask_together(client, large, *small)
    assert {status for status, _ in (first, *others)} == {200}
    assert all(moment < first[1] for _, moment in others)


def test_large_requests_at_once_are_limited_and_small_ones_are_not(client, images: list[bytes]):
    large = {"instances": [as_base64(flat("PNG"))] * 8}
    answers = ask_together(client, *[large] * 5, {"instances": [as_base64(images[0])]})
    statuses = [status for status, _ in answers]
    assert statuses == [200, 200, 429, 429, 429, 200]
    assert client.post(PREDICT, json=large).status_code == 200
