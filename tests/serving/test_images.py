"""Images of every kind get the predictions of `predict_files`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from http_clients import InProcess, as_base64
from PIL import Image

from keras_transfer.inference.prediction import Prediction, load_run, predict_files
from keras_transfer.serving.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One photograph in every file format and variant."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("kinds")
    photo = Image.fromarray(load_sample_images().images[0]).resize((121, 77))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    small = [photo.resize((61, 33)).rotate(angle) for angle in (0, 90, 180)]
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    veil = photo.convert("RGBA")
    veil.putalpha(Image.linear_gradient("L").resize(photo.size))
    photo.save(folder / "plain.jpg")
    photo.convert("L").save(folder / "grey.jpg")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.save(folder / "progressive.jpg", progressive=True)
    photo.save(folder / "rotated.jpg", exif=rotated)
    photo.save(folder / "plain.png")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("1").save(folder / "bits.png")
    photo.convert("LA").save(folder / "grey_alpha.png")
    deep.save(folder / "deep.png")
    veil.save(folder / "alpha.png")
    photo.save(folder / "plain.gif")
    small[0].save(folder / "animated.gif", save_all=True, append_images=small[1:])
    photo.save(folder / "plain.bmp")
    photo.convert("P").save(folder / "palette.bmp")
    photo.save(folder / "plain.webp")
    veil.save(folder / "alpha.webp")
    small[0].save(folder / "animated.webp", save_all=True, append_images=small[1:])
    photo.resize((3, 200)).save(folder / "narrow.png")
    photo.resize((1, 1)).save(folder / "dot.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def client(run_folder: Path) -> Iterator[InProcess]:
    with InProcess(Settings(folder=run_folder / "export")) as client:
        yield client


def test_every_kind_of_image_is_predicted_like_predict_files(
    client: InProcess, run_folder: Path, files: list[Path]
):
    expected = list(predict_files(load_run(run_folder), files))
    content = {"instances": [as_base64(file.read_bytes()) for file in files]}
    rows = client.post("/v1/models/temples:predict", json=content).json()["predictions"]
    for row, answer in zip(rows, expected, strict=True):
        assert isinstance(answer, Prediction), answer
        np.testing.assert_allclose(
            row["probabilities"], answer.outputs, rtol=0, atol=1e-5, err_msg=answer.path
        )
        assert row["label"] == answer.label


def test_explanations_decode_every_kind_of_image_too(client: InProcess, files: list[Path]):
    images = [as_base64(file.read_bytes()) for file in files]
    plain = {"instances": images}
    explained = {
        "signature_name": "serving_explain",
        "inputs": {"image_bytes": images, "class_index": [-1] * len(images)},
    }
    path = "/v1/models/temples:predict"
    labels = [row["label"] for row in client.post(path, json=plain).json()["predictions"]]
    assert client.post(path, json=explained).json()["outputs"]["label"] == labels


def test_one_invalid_image_does_not_fail_its_batch(
    client: InProcess, files: list[Path], images: list[bytes], probabilities: np.ndarray
):
    import asyncio

    import httpx

    damaged = (files[0].parent / "plain.jpg").read_bytes()[:-900]

    async def ask(data: bytes) -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(client.app), base_url="http://localhost"
        ) as one:
            content = {"instances": [as_base64(data)]}
            return await one.post("/v1/models/temples:predict", json=content)

    async def ask_all() -> list[httpx.Response]:
        mixed = [data for image in images for data in (image, damaged)]
        return await asyncio.gather(*map(ask, mixed))

    responses = asyncio.run(ask_all())
    assert {response.status_code for response in responses[1::2]} == {400}
    assert responses[1].json() == {"error": "instances[0]: truncated or damaged"}
    answers = [response.json()["predictions"][0]["probabilities"] for response in responses[::2]]
    np.testing.assert_allclose(answers, probabilities, rtol=0, atol=1e-6)
