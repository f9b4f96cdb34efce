"""The server's address book: TensorFlow Serving's endpoints, and those that watch over it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.convertors import Convertor, StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from keras_transfer.serving import schemas
from keras_transfer.serving.metrics import Counted
from keras_transfer.serving.protocol import RefusedError
from keras_transfer.serving.service import Service, json_response

_MODEL: Final = "/v1/models/{name:model_name}"
_VERSION: Final = _MODEL + "/versions/{version:model_version}"
PAGE_FILE: Final = "page.html"
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data: blob:",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class ModelNameConvertor(StringConvertor):
    """A model's name in a path: ends at the colon before a verb."""

    regex = "[^/:]+"


class VersionConvertor(Convertor[int]):
    """A version's number in a path: a positive 64-bit number."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        """The number."""
        return int(value)

    def to_string(self, value: int) -> str:
        """Its digits."""
        return str(value)


class PlainRoute(APIRoute):
    """A route whose endpoint gets the request and the path's parameters, and nothing is injected.

    FastAPI looks for dependencies in every request, for as long as a small network needs.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; what another method gets is FastAPI's matter."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response = await self.endpoint(Request(scope, receive), **scope["path_params"])
        await response(scope, receive, send)


def build_app(service: Service) -> FastAPI:
    """The ASGI application of a service, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.versions.start()
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.stop)

    register_url_convertor("model_name", ModelNameConvertor())
    register_url_convertor("model_version", VersionConvertor())
    app = FastAPI(
        title="keras_transfer",
        description="TensorFlow Serving's REST protocol for one exported classifier.",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    _add_errors(app)
    _add_predict_routes(app, service)  # First: routes are looked through in their order.
    _add_model_routes(app, service)
    _add_other_routes(app, service)
    app.add_middleware(Counted, metrics=service.metrics)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refuse(_: Request, error: RefusedError) -> Response:
        return json_response({"error": error.message}, status=error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        words = f"{error.detail}: {request.method} {request.url.path}"
        return json_response({"error": words}, status=error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return json_response({"error": str(error)}, status=400)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:  # noqa: ARG001
        return Response(status_code=400)  # Which nobody reads.

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:  # noqa: ARG001
        return json_response({"error": "Internal error; the server's log says what"}, status=500)


def _add_predict_routes(app: FastAPI, service: Service) -> None:
    answer = schemas.RowAnswer | schemas.ColumnAnswer
    described: dict[str, Any] = {
        "response_model": answer,
        "responses": _errors(400, 404, 408, 413, 415, 422, 429, 503),
        "openapi_extra": {"requestBody": _body_schema()},
        "methods": ["POST"],
        "route_class_override": PlainRoute,
    }

    async def predict(request: Request, name: str) -> Response:
        """Classify images, or explain how they are classified."""
        return await service.predict(request, name, None)

    async def version_predict(request: Request, name: str, version: int) -> Response:
        """Classify images with one version."""
        return await service.predict(request, name, version)

    app.router.add_api_route(f"{_MODEL}:predict", predict, **described)
    app.router.add_api_route(f"{_VERSION}:predict", version_predict, **described)


def _add_model_routes(app: FastAPI, service: Service) -> None:
    @app.get(_MODEL, response_model=schemas.ModelStatus, responses=_errors(404))
    async def model_status(name: str) -> Response:
        """Tell the states of all versions."""
        return json_response(service.status(name, None))

    @app.get(_VERSION, response_model=schemas.ModelStatus, responses=_errors(404))
    async def version_status(name: str, version: int) -> Response:
        """Tell the state of one version."""
        return json_response(service.status(name, version))

    unready = _errors(404, 503)

    @app.get(f"{_MODEL}/metadata", response_model=schemas.ModelMetadata, responses=unready)
    async def model_metadata(name: str) -> Response:
        """Tell what the signatures take and return."""
        return json_response(service.metadata(name, None))

    @app.get(f"{_VERSION}/metadata", response_model=schemas.ModelMetadata, responses=unready)
    async def version_metadata(name: str, version: int) -> Response:
        """Tell what one version's signatures take and return."""
        return json_response(service.metadata(name, version))


def _add_other_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", response_model=schemas.Health)
    async def health() -> Response:
        """Tell that the process lives."""
        return json_response({"status": "alive"})

    @app.get("/readyz", response_model=schemas.Health, responses=_errors(503))
    async def ready() -> Response:
        """Tell whether a version is loaded."""
        service.check_ready()
        return json_response({"status": "ready"})

    @app.get("/card", response_model=dict[str, Any], responses=_errors(503))
    async def card() -> Response:
        """Tell what the version that answers is, how good and for what."""
        return json_response(service.card())

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Tell all counts to Prometheus."""
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    file = resources.files("keras_transfer.serving") / PAGE_FILE
    if file.is_file():
        page = file.read_text(encoding="utf-8")

        @app.get("/", response_class=HTMLResponse)
        async def show_page() -> Response:
            """Show a page to try the model on."""
            return HTMLResponse(page, headers=_PAGE_HEADERS)


def _body_schema() -> dict[str, Any]:
    schemas_of_bodies = [
        model.model_json_schema(ref_template="#/components/schemas/{model}")
        for model in (schemas.RowRequest, schemas.ColumnRequest)
    ]
    bytes_schema = schemas.Bytes.model_json_schema()
    for schema in schemas_of_bodies:
        schema.pop("$defs", None)
    rows = schemas_of_bodies[0]["properties"]["instances"]["items"]["anyOf"]
    rows[0] = bytes_schema
    content = {"application/json": {"schema": {"anyOf": schemas_of_bodies}}}
    return {"required": True, "content": content}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    # FastAPI would describe 422, and for itself alone, wherever there is a parameter.
    return {status: {"model": schemas.Error} for status in (*statuses, 422)}
