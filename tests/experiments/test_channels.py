"""Runs on images of four channels and of one: training, export, prediction, heat maps, serving."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from http_clients import InProcess, as_base64
from PIL import Image

import keras_transfer as kt
from keras_transfer.data.images import encode_array
from keras_transfer.data.records import BadFile
from keras_transfer.errors import DataError
from keras_transfer.export.formats.runtimes import open_runtime
from keras_transfer.export.formats.source import inference_graph
from keras_transfer.inference.explanation_files import draw_overlay
from keras_transfer.inference.prediction import load_run
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.serving.settings import Settings

FIELDS = {
    "backbone": "small",
    "weights": "none",
    "image_size": 16,
    "count": 2,
    "views.policy": "strong",
    "phases": [{"name": "frozen", "method": "exact"}],
    "reporter": SilentReporter(),
}
RNG = np.random.default_rng(0)
SIZE, NUM = 20, 60
LABELS = np.arange(NUM) % 2


def noisy(channels: int) -> np.ndarray:
    """Images whose classes differ in the brightness of their last channel only."""
    images = RNG.integers(0, 256, (NUM, SIZE, SIZE, channels), dtype=np.uint8)
    images[..., -1] = images[..., -1] // 4 + 160 * LABELS[:, np.newaxis, np.newaxis]
    return images


FOUR, GREY = noisy(4), noisy(1)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> kt.Run:
    folder = tmp_path_factory.mktemp("four")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_TRANSFER_HOME", str(folder / "home"))
        return kt.fine_tune((FOUR, LABELS), channels=4, output=folder / "run", **FIELDS)


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> kt.Run:
    """Of files in three formats."""
    folder = tmp_path_factory.mktemp("grey")
    for number, (pixels, label) in enumerate(zip(GREY[..., 0], LABELS, strict=True)):
        file = folder / "images" / "ab"[label] / f"{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number % 3 == 0:
            file.with_suffix(".npy").write_bytes(encode_array(pixels))
        else:
            Image.fromarray(pixels).save(file.with_suffix(".png" if number % 3 == 1 else ".jpg"))
    return kt.fine_tune(folder / "images", channels=1, output=folder / "run", **FIELDS)


@pytest.mark.parametrize("name", ["four", "grey"])
def test_classes_are_learned_from_the_channels_and_the_export_agrees(name, request):
    run = request.getfixturevalue(name)
    assert run.evaluation.accuracy == 1
    proof = json.loads((run.path / "export" / "1" / "proof.json").read_text())
    assert (proof["label_agreement"], proof["refused"]) == (1, {})
    assert proof["num_files"] == run.evaluation.num_examples
    assert (run.path / "figures" / "views.png").is_file()


def outputs(predictions: list) -> np.ndarray:
    return np.stack([one.outputs for one in predictions])


def test_arrays_data_sets_and_files_get_the_same_predictions(four, tmp_path):
    file = tmp_path / "image.npy"
    file.write_bytes(encode_array(FOUR[0]))
    expected = outputs(four.predict(FOUR[:8]))
    for same in (
        (FOUR[:8], LABELS[:8]),
        tf.data.Dataset.from_tensor_slices((FOUR[:8], LABELS[:8])),
    ):
        np.testing.assert_allclose(outputs(four.predict(same)), expected, atol=1e-6)
    np.testing.assert_allclose(outputs(four.predict(file)), expected[:1], atol=1e-6)
    assert four.evaluate((FOUR[:8], LABELS[:8]), include_training=True).accuracy == 1
    with pytest.raises(DataError, match=r"\[N, H, W, 4\]"):
        four.predict(FOUR[..., :3])


def test_a_photo_is_no_image_of_four_channels(four, tmp_path):
    Image.fromarray(FOUR[0, ..., :3]).save(tmp_path / "photo.png")
    with pytest.warns(UserWarning, match="1 image was not predicted"):
        (found,) = four.predict(tmp_path / "photo.png")
    assert isinstance(found, BadFile)
    assert "height × width × 4" in found.reason


def test_the_saved_model_takes_arrays_and_files_of_arrays(four):
    contract = open_runtime(four.path / "export" / "1").contract
    assert contract.input_shape == (16, 16, 4)
    signatures = tf.saved_model.load(str(four.path / "export" / "1")).signatures
    expected = outputs(four.predict(FOUR[:3]))
    for name, given in {
        "serving_pixels": {"pixels": tf.constant(FOUR[:3])},
        "serving_default": {"image_bytes": tf.constant([*map(encode_array, FOUR[:3])])},
    }.items():
        served = signatures[name](**given)["probabilities"]
        np.testing.assert_allclose(served, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["four", "grey"])
def test_the_graph_of_other_formats_agrees(name, request):
    loaded = load_run(request.getfixturevalue(name).path)
    pixels = RNG.integers(0, 256, (3, *loaded.contract.input_shape), dtype=np.uint8)
    (found,) = inference_graph(loaded.model, loaded.task)(tf.constant(pixels))
    np.testing.assert_allclose(found, loaded(pixels), atol=1e-5)


def test_heat_maps_show_three_of_the_channels(four, tmp_path):
    file = tmp_path / "image.npy"
    file.write_bytes(encode_array(FOUR[1]))
    explanation = four.explain(file)
    assert explanation.pixels.shape == (16, 16, 4)
    assert draw_overlay(explanation).mode == "RGB"


@pytest.fixture
def client(request) -> Iterator[tuple[kt.Run, InProcess]]:
    run = request.getfixturevalue(request.param)
    with InProcess(Settings(folder=run.path / "export")) as client:
        yield run, client


def image_of(run: kt.Run, folder: Path) -> tuple[np.ndarray, bytes]:
    """Pixels and the file of an image that the run takes."""
    if run.spec.data.channels == 4:
        return FOUR[0], encode_array(FOUR[0])
    Image.fromarray(GREY[0, ..., 0]).save(folder / "grey.png")
    return GREY[0], (folder / "grey.png").read_bytes()


@pytest.mark.parametrize("client", ["four", "grey"], indirect=True)
def test_the_server_answers_pixels_and_files(client, tmp_path):
    run, server = client
    pixels, data = image_of(run, tmp_path)
    (expected,) = outputs(run.predict(pixels[np.newaxis]))
    path = (
        "/v1/models/"
        + json.loads((run.path / "export" / "1" / "contract.json").read_text())["name"]
    )
    for content in (
        {"instances": [as_base64(data)]},
        {"signature_name": "serving_pixels", "instances": [pixels.tolist()]},
        {
            "signature_name": "serving_explain",
            "instances": [{"image_bytes": as_base64(data), "class_index": -1}],
        },
    ):
        answer = server.post(f"{path}:predict", json=content)
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()["predictions"]
        np.testing.assert_allclose(row["probabilities"], expected, atol=1e-5)
        assert "square" not in row
    wrong = {"signature_name": "serving_pixels", "instances": [pixels[..., [0, 0]].tolist()]}
    answer = server.post(f"{path}:predict", json=wrong)
    assert (answer.status_code, f"width, {pixels.shape[-1]}]" in answer.text) == (400, True)
