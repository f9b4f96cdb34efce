"""/openapi.json matches the server: generated requests get the documented responses."""

from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import schemathesis
from http_clients import InProcess, as_base64
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from keras_transfer.serving.settings import Settings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


bounded = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def client(run_folder: Path) -> Iterator[InProcess]:
    with InProcess(Settings(folder=run_folder / "export")) as client:
        yield client


def ask(case: schemathesis.Case, client: InProcess) -> None:
    if "name" in case.path_parameters:
        case.path_parameters["name"] = "temples"
    request = case.as_transport_kwargs(base_url="http://localhost")
    known = {"params", "headers", "json"}
    content = {"content": request["data"]} if request.get("data") is not None else {}
    content |= {name: value for name, value in request.items() if name in known}
    response = client.request(request["method"], request["url"], **content)
    case.validate_response(schemathesis.Response.from_httpx(response, verify=False), checks=CHECKS)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_responses_match_the_description(client: InProcess, mode: GenerationMode):
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:
        strategy = operation.as_strategy(generation_mode=mode)
        try:
            bounded(given(case=strategy)(lambda case: ask(case, client)))()
        except Unsatisfiable:  # Without parameters and body there is nothing to get wrong.
            assert mode is GenerationMode.NEGATIVE


def test_all_endpoints_are_described(client: InProcess):
    paths = client.get("/openapi.json").json()["paths"]
    model = "/v1/models/{name}"
    versions = model + "/versions/{version}"
    described = {model, versions, f"{model}/metadata", f"{versions}/metadata"}
    described |= {f"{model}:predict", f"{versions}:predict"}
    assert described | {"/healthz", "/readyz", "/card", "/metrics"} == set(paths) - {"/"}


def test_predictions_and_metadata_match_their_schemas(client: InProcess, images: list[bytes]):
    description = client.get("/openapi.json").json()
    cases = [
        ("ModelStatus", client.get("/v1/models/temples")),
        ("ModelMetadata", client.get("/v1/models/temples/metadata")),
    ]
    for key, name in (("instances", "RowResponse"), ("inputs", "ColumnResponse")):
        body = {key: [as_base64(images[0])]}
        cases.append((name, client.post("/v1/models/temples:predict", json=body)))
    for name, response in cases:
        schema = {"$ref": f"#/components/schemas/{name}", "components": description["components"]}
        jsonschema.validate(response.json(), schema)
