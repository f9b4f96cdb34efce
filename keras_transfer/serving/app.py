"""The ASGI application: TensorFlow Serving's endpoints, health, metrics, card and page.

openapi.json describes the endpoints; the tests compare it with the server.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from keras_transfer.serving.metrics import CountRequests
from keras_transfer.serving.origins import CheckOrigin
from keras_transfer.serving.protocol import RefusedError
from keras_transfer.serving.service import Service, json_response
from keras_transfer.serving.settings import Settings

_MODEL: Final = "/v1/models/{name:model_name}"
_VERSION: Final = _MODEL + "/versions/{version:model_version}"
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data: blob:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "Cache-Control": "no-cache",
}

Endpoint = Callable[[Request], Awaitable[Response]]


class ModelNameConvertor(StringConvertor):
    """A model's name in a path: ends at the colon before a verb."""

    regex = "[^/:]+"


class VersionConvertor(IntegerConvertor):
    """A version's number in a path: fits into 64 bits."""

    regex = "[0-9]{1,18}"


def build_app(service: Service) -> Starlette:
    """The ASGI application of a service, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.versions.start()
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.stop)

    app = Starlette(
        routes=_routes(service),
        middleware=[
            Middleware(CountRequests, metrics=service.metrics),
            Middleware(CheckOrigin, settings=service.settings),
            *_cross_origin(service.settings),
        ],
        exception_handlers={
            HTTPException: _refuse,
            ClientDisconnect: _disconnected,
            Exception: _fail,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _cross_origin(settings: Settings) -> list[Middleware]:
    """Lets the pages of other sites read responses, if settings allow any."""
    if not settings.origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Content-Type",),
            expose_headers=("Retry-After",),
            allow_private_network=True,
        )
    ]


def _routes(service: Service) -> list[Route]:
    register_url_convertor("model_name", ModelNameConvertor())
    register_url_convertor("model_version", VersionConvertor())

    async def predict(request: Request) -> Response:
        return await service.predict(request, **request.path_params)

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    page = HTMLResponse(_read("page.html"), headers=_PAGE_HEADERS)
    description = json_response(_read("openapi.json"))
    return [
        Route(f"{_MODEL}:predict", predict, methods=["POST"]),
        Route(f"{_VERSION}:predict", predict, methods=["POST"]),
        Route(_MODEL, _json(service.status)),
        Route(_VERSION, _json(service.status)),
        Route(f"{_MODEL}/metadata", _json(service.metadata)),
        Route(f"{_VERSION}/metadata", _json(service.metadata)),
        Route("/healthz", _json(lambda: {"status": "alive"})),
        Route("/readyz", _json(service.readiness)),
        Route("/card", _json(service.card)),
        Route("/metrics", metrics),
        Route("/openapi.json", _constant(description)),
        Route("/", _constant(page)),
    ]


def _json(call: Callable[..., Any]) -> Endpoint:
    """An endpoint that returns what a function of the path's parameters returns."""

    async def endpoint(request: Request) -> Response:
        return json_response(call(**request.path_params))

    return endpoint


def _constant(response: Response) -> Endpoint:
    async def endpoint(_: Request) -> Response:
        return response

    return endpoint


def _read(name: str) -> bytes:
    return resources.files("keras_transfer.serving").joinpath(name).read_bytes()


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = error.detail
    if not isinstance(error, RefusedError):
        words = f"{words}: {request.method} {request.url.path}"
    return json_response({"error": words}, status=error.status_code, headers=error.headers)


async def _disconnected(_: Request, error: Exception) -> Response:  # noqa: ARG001
    return Response(status_code=400)  # ASGI expects a response, although it cannot be sent.


async def _fail(_: Request, error: Exception) -> Response:  # noqa: ARG001
    return json_response({"error": "Internal error; see the server's log"}, status=500)
