"""TensorFlow Serving's protocol field by field, and invalid requests; in process."""

import base64
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from http_clients import InProcess, as_base64, claim_png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_transfer.errors import ExportError
from keras_transfer.serving.protocol import (
    RefusedError,
    add_class_names,
    parse_request,
    read_bytes,
)
from keras_transfer.serving.settings import Settings, find_export_folder

pytestmark = pytest.mark.graph_optimizer

PREDICT = "/v1/models/temples:predict"
INPUTS = {"serving_default": ["image_bytes"], "serving_explain": ["class_index", "image_bytes"]}
NAMES = ["temple", "naïve flower", "path"]


@pytest.fixture(scope="module")
def client(run_folder: Path) -> Iterator[InProcess]:
    settings_ = Settings(
        folder=run_folder / "export", max_queue=48, max_instances=40, max_body_megabytes=1
    )
    with InProcess(settings_) as client:
        yield client


@pytest.fixture(scope="module")
def signatures(run_folder: Path):
    loaded = tf.saved_model.load(str(run_folder / "export" / "1"))
    return loaded.signatures


def predictions(client: InProcess, content: dict) -> list:
    response = client.post(PREDICT, json=content)
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


def refusal(client: InProcess, content, *, status: int = 400, path: str = PREDICT) -> str:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    response = client.post(path, content=body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    return response.json()["error"]


def plain(value):
    """A tensor as JSON has it."""
    array = value.numpy()
    return np.char.decode(array.astype(bytes), "utf-8").tolist() if array.dtype == object else array


def test_rows_match_the_signature(client, signatures, images):
    rows = predictions(client, {"instances": [as_base64(data) for data in images]})
    answer = signatures["serving_default"](image_bytes=tf.constant(images))
    assert len(rows) == len(images)
    for row in rows:
        assert row.keys() == answer.keys()
    for name, tensor in answer.items():
        column = [row[name] for row in rows]
        if tensor.dtype == tf.string:
            assert column == plain(tensor), name
        else:
            np.testing.assert_allclose(column, plain(tensor), rtol=0, atol=1e-6)


def test_rows_may_name_their_input(client, images):
    bare = predictions(client, {"instances": [as_base64(images[0])]})
    named = {"instances": [{"image_bytes": as_base64(images[0])}]}
    assert predictions(client, named | {"signature_name": "serving_default"}) == bare
    assert predictions(client, named | {"signature_name": ""}) == bare


def test_columns_get_columns(client, images):
    (row,) = predictions(client, {"instances": [as_base64(images[0])]})
    for inputs in ([as_base64(images[0])], {"image_bytes": [as_base64(images[0])]}):
        response = client.post(PREDICT, json={"inputs": inputs})
        assert response.json() == {"outputs": {name: [value] for name, value in row.items()}}


def test_pixels_match_the_signature(client, signatures):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), np.uint8)
    content = {"signature_name": "serving_pixels", "instances": pixels.tolist()}
    rows = predictions(client, content)
    answer = signatures["serving_pixels"](pixels=tf.constant(pixels))
    np.testing.assert_allclose(
        [row["probabilities"] for row in rows], answer["probabilities"], rtol=0, atol=1e-6
    )
    assert rows[0].keys() == answer.keys()
    named = {"signature_name": "serving_pixels", "inputs": {"pixels": pixels.tolist()}}
    outputs = client.post(PREDICT, json=named).json()["outputs"]
    assert outputs["label"] == [row["label"] for row in rows]


def test_resized_pixels_get_numbers_only(client, signatures):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    rows = predictions(client, {"signature_name": "serving_resized", "instances": pixels.tolist()})
    answer = signatures["serving_resized"](pixels=tf.constant(pixels))
    assert rows[0].keys() == answer.keys()
    for name, tensor in answer.items():
        np.testing.assert_allclose([row[name] for row in rows], tensor, rtol=0, atol=1e-6)


def test_explanations_match_the_signature(client, signatures, images):
    indices = [-1, 0, 2]
    content = [
        {"image_bytes": as_base64(data), "class_index": index}
        for data, index in zip(images, indices, strict=False)
    ]
    rows = predictions(client, {"signature_name": "serving_explain", "instances": content})
    answer = signatures["serving_explain"](
        image_bytes=tf.constant(images[:3]), class_index=tf.constant(indices)
    )
    assert rows[0].keys() == answer.keys()
    assert [row["label"] for row in rows] == plain(answer["label"])
    for name in ("probabilities", "heat_map"):
        np.testing.assert_allclose([row[name] for row in rows], answer[name], rtol=0, atol=1e-5)
    squares = [base64.b64decode(row["square_bytes"]["b64"]) for row in rows]
    assert squares == answer["square_bytes"].numpy().tolist()


def test_status_is_as_documented(client):
    available = {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for path in ("/v1/models/temples", "/v1/models/temples/versions/1"):
        assert client.get(path).json() == {"model_version_status": [available]}


def test_metadata_is_as_documented(client):
    content = client.get("/v1/models/temples/metadata").json()
    assert content == client.get("/v1/models/temples/versions/1/metadata").json()
    spec = {"name": "temples", "signature_name": "", "version": "1"}
    assert content["model_spec"] == spec
    definitions = content["metadata"]["signature_def"]["signature_def"]
    assert definitions["serving_default"]["method_name"] == "tensorflow/serving/predict"
    assert definitions["serving_default"]["inputs"]["image_bytes"] == {
        "dtype": "DT_STRING",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
        "name": "serving_default_image_bytes:0",
    }
    outputs = definitions["serving_default"]["outputs"]
    sizes = [dim["size"] for dim in outputs["probabilities"]["tensor_shape"]["dim"]]
    assert (outputs["probabilities"]["dtype"], sizes) == ("DT_FLOAT", ["-1", "3"])


def test_a_version_may_be_named(client, images):
    content = {"instances": [as_base64(images[0])]}
    path = "/v1/models/temples/versions/1:predict"
    assert client.post(path, json=content).json()["predictions"] == predictions(client, content)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/models/half:predict", "Servable not found for request: Latest(half)"),
        ("/v1/models/temples/versions/7:predict", "not found for request: Specific(temples, 7)"),
        ("/v1/models/temples/versions/seven:predict", "Not Found"),
        (f"/v1/models/temples/versions/{'7' * 5000}:predict", "Not Found"),
        ("/v1/models/temples:fly", "Not Found"),
    ],
)
def test_unknown_models_and_versions_are_404(client, path, words):
    assert words in refusal(client, {"instances": [1]}, status=404, path=path)


def test_unknown_models_have_no_status(client):
    response = client.get("/v1/models/half")
    assert response.status_code == 404
    assert response.json() == {
        "error": "Could not find any versions of model half; this server has the model temples"
    }
    response = client.get("/v1/models/temples/versions/7")
    assert response.json() == {"error": "Could not find version 7 of model temples"}
    assert client.get("/v1/models/half/metadata").status_code == 404


def test_another_method_is_405(client):
    for method, path in [("GET", PREDICT), ("POST", "/v1/models/temples"), ("PUT", "/card")]:
        response = client.request(method, path)
        assert response.status_code == 405
        assert "Method Not Allowed" in response.json()["error"]
        assert response.headers["allow"]


PIXEL = {"signature_name": "serving_pixels"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Parse error"),
        (b'{"instances": [', "Parse error"),
        (b'{"instances": [NaN]}', "NaN is not JSON"),
        (b'{"instances": [-Infinity]}', "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        ('{"instances": [1]}'.encode("utf-16"), "send UTF-8"),
        ('{"instances": [1]}'.encode("utf-16-le"), "send UTF-8"),
        ('{"instances": [1]}'.encode("utf-16-be"), "send UTF-8"),
        (b"\xff\xd8\xff\xe0 a JPEG", "with the bytes of an image in base64"),
        (b"--boundary\r\nContent-Disposition: form-data\r\n", "with the bytes of an image"),
        ({"instances": [{"b64": "b'/9j/4AAQ'"}]}, "decode('ascii') first"),
        ({"instances": ["data:image/png;base64,iVBORw0KGgo="]}, "send its bytes as"),
        ({"instances": [{"b64": "data:image/svg+xml,%3Csvg%3E"}]}, "Unable to base64 decode"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b'{"instances": [' + b"9" * 5000 + b"]}", "Parse error"),
        ([], "must be a JSON object, received a list"),
        ({}, "must have one of 'instances'"),
        ({"instances": [1], "inputs": [1]}, "only one of"),
        ({"instances": []}, "No values"),
        ({"instances": {}}, "must be a list"),
        ({"inputs": []}, "one or more rows"),
        ({"inputs": {"image": [1]}}, "Missing named input: image_bytes"),
        ({"inputs": {"image_bytes": {"b64": ""}}}, "must be a list"),
        ({"signature_name": 1, "instances": [1]}, "must be a string"),
        ({"signature_name": "\ud800", "instances": [1]}, "not found"),
        ({"instances": [{"image": 1}]}, "keys must be equal to: image_bytes"),
        ({"instances": [{"b64": ""}, {"image_bytes": 1}]}, "or none of them"),
        ({"instances": [{"b64": "%"}]}, "instances[0]: Unable to base64 decode"),
        ({"instances": [{"b64": ""}]}, "empty"),
        ({"instances": [None]}, "received null"),
        ({"instances": ["an image, honestly"]}, "send its bytes as"),
        (PIXEL | {"instances": [[[[0.5, 0, 0]]]]}, "other numbers"),
        (PIXEL | {"instances": [[[[True, 0, 0]]]]}, "other numbers"),
        (PIXEL | {"instances": [[[[256, 0, 0]]]]}, "other numbers"),
        (PIXEL | {"instances": [[[[10**30, 0, 0]]]]}, "other numbers"),
        (PIXEL | {"instances": [[[[0, 0]]]]}, "received the shape"),
        (PIXEL | {"instances": [[[[0, 0, 0], [0]]]]}, "unequal lengths"),
        (PIXEL | {"instances": [[[[0, 0, 0]]], [[[0, 0, 0]] * 2]]}, "Expecting shape [1, 1]"),
        (PIXEL | {"inputs": [{}]}, "received an object"),
        (
            {"signature_name": "serving_resized", "instances": [[[[0, 0, 0]]]]},
            "must have the shape",
        ),
        ({"signature_name": "serving_explain", "instances": [{"b64": ""}]}, "must be objects"),
        (
            {"signature_name": "serving_explain", "inputs": {"image_bytes": [], "class_index": 1}},
            "inputs.class_index: must be a list",
        ),
    ],
)
def test_malformed_bodies_are_400_and_say_why(client, body, words):
    assert words in refusal(client, body)


def test_explanations_of_unknown_classes_are_refused(client, images):
    row = {"image_bytes": as_base64(images[0])}
    for index in (3, 1.0, True, "0", -(2**40)):
        content = {"signature_name": "serving_explain", "instances": [row | {"class_index": index}]}
        assert "instances[0]: class_index" in refusal(client, content)
    content = {
        "signature_name": "serving_explain",
        "inputs": {"image_bytes": [as_base64(images[0])], "class_index": [0, 1]},
    }
    assert "equally many rows" in refusal(client, content)


def test_a_damaged_row_is_named(client, images):
    rows = [as_base64(data) for data in images[:4]]
    rows[2] = as_base64(images[0][:200])
    assert refusal(client, {"instances": rows}) == "instances[2]: truncated or damaged"
    assert refusal(client, {"inputs": rows}) == "inputs[2]: truncated or damaged"


def test_limits_have_their_statuses(client, images):
    good = as_base64(images[0])
    assert "more than 1 MB" in refusal(client, b"x" * 1_100_000, status=413)
    assert "more than 40" in refusal(client, {"instances": [good] * 41}, status=422)
    huge = {"instances": [good, as_base64(claim_png(60_000, 60_000))]}
    assert "instances[1]: 60000 × 60000 px is more than 1" in refusal(client, huge, status=422)
    compressed = client.post(PREDICT, content=b"x", headers={"Content-Encoding": "gzip"})
    assert compressed.status_code == 415
    assert "gzip" in compressed.json()["error"]


def test_a_full_queue_is_429(run_folder: Path, images):
    limited = Settings(folder=run_folder / "export", max_queue=4)
    with InProcess(limited) as client:
        response = client.post(PREDICT, json={"instances": [as_base64(images[0])] * 5})
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert "at most 4" in response.json()["error"]
        assert len(predictions(client, {"instances": [as_base64(images[0])] * 4})) == 4


def test_requests_get_503_before_a_version_is_loaded(tmp_path: Path):
    with InProcess(Settings(folder=tmp_path, name="temples")) as client:
        for path in ("/readyz", "/card", "/v1/models/temples/metadata"):
            assert client.get(path).status_code == 503
        assert client.get("/healthz").json() == {"status": "alive"}
        assert refusal(client, {"instances": [1]}, status=503) == "No version is loaded yet"
        assert client.get("/v1/models/temples").status_code == 503
        assert client.get("/v1/models/half").status_code == 404


def test_a_server_without_a_version_that_loads_is_alive_and_not_ready(run_folder, tmp_path):
    folder = Path(shutil.copytree(run_folder / "export", tmp_path / "export"))
    (folder / "1" / "labels.txt").write_text("other\nclasses\nhere\n")
    with InProcess(Settings(folder=folder, name="temples")) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        response = client.get("/readyz")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json() == {"error": "No version is loaded yet; version 1: END"}
        assert refusal(client, {"instances": [1]}, status=503) == response.json()["error"]


def test_health_card_and_metrics(client, images, class_names):
    predictions(client, {"instances": [as_base64(images[0])]})
    assert client.get("/readyz").json() == {"status": "ready"}
    card = client.get("/card").json()
    assert card["class_names"] == list(class_names)
    assert (card["name"], card["version"], card["image_size"]) == ("temples", 1, 32)
    metrics = client.get("/metrics").text
    for line in (
        'keras_transfer_requests_total{route="/v1/models/{name}:predict",status="200"}',
        'keras_transfer_requests_total{route="other",status="404"}',
        'keras_transfer_request_seconds_bucket{le="0.005",route="/readyz"}',
        'keras_transfer_batch_size_bucket{le="1.0"}',
        "keras_transfer_images_total",
        "keras_transfer_queue_depth 0.0",
        "keras_transfer_model_version 1.0",
    ):
        assert line in metrics


def test_the_page_cannot_reach_other_hosts(client):
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self' 'unsafe-inline' data: blob:; ")


def test_the_card_of_an_export_is_shown_as_it_is(run_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(run_folder / "export", tmp_path / "export"))
    (folder / "1" / "card.json").write_text('{"name": "temples", "accuracy": 0.9}')
    with InProcess(Settings(folder=folder)) as client:
        assert client.get("/card").json() == {"name": "temples", "accuracy": 0.9}


def test_find_export_folder_takes_a_run_or_its_exports(run_folder: Path, tmp_path: Path):
    assert find_export_folder(run_folder) == run_folder / "export"
    assert find_export_folder(run_folder / "export") == run_folder / "export"
    (tmp_path / "1.partial").mkdir()
    (tmp_path / "1.partial" / "saved_model.pb").touch()
    with pytest.raises(ExportError, match="no exported model"):
        find_export_folder(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["b64", "image_bytes", "class_index", "x"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "signature_name": st.sampled_from([*INPUTS, "", "x"]) | JSON,
        "instances": JSON,
        "inputs": JSON,
    },
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=BODIES.map(json.dumps).map(str.encode) | st.binary(max_size=60))
def test_parsing_ends_in_rows_or_in_a_400(body: bytes):
    try:
        request = parse_request(body, INPUTS)
    except RefusedError as error:
        statuses = {error.status_code}
    else:
        statuses = {400}
        assert list(request.columns) == INPUTS[request.signature]
        assert all(len(column) == request.num_rows > 0 for column in request.columns.values())
    assert statuses == {400}


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=100))
def test_bytes_come_back_from_base64_with_and_without_padding(data: bytes):
    text = base64.b64encode(data).decode()
    assert read_bytes({"b64": text}) == read_bytes({"b64": text.rstrip("=")}) == data
    assert read_bytes({"b64": "\n".join(text)}) == data
    for_urls = base64.urlsafe_b64encode(data).decode()
    assert read_bytes({"b64": for_urls}) == read_bytes({"b64": for_urls.rstrip("=")}) == data
    for head in ("data:image/jpeg;base64,", "DATA:;charset=utf-8;BASE64,", " data:;base64,\n"):
        assert read_bytes({"b64": head + text}) == read_bytes({"b64": head + for_urls}) == data


def test_a_byte_order_mark_is_read(client, images):
    content = {"instances": [as_base64(images[0])]}
    body = json.dumps(content).encode("utf-8-sig")
    response = client.post(PREDICT, content=body)
    assert response.json()["predictions"] == predictions(client, content)


def test_probabilities_are_finite_and_sum_to_one(client, images):
    for row in predictions(client, {"instances": [as_base64(data) for data in images]}):
        assert math.isclose(sum(row["probabilities"]), 1, abs_tol=1e-5)
        assert row["class_names"] == NAMES


def test_outputs_of_other_tasks_are_passed_on():
    columns = {"values": [[0.5, 2.0]], "probabilities": [[0.1, 0.9]]}
    assert add_class_names(dict(columns), ("a", "b")) == columns
