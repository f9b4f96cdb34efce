"""Prometheus metrics of a server: requests, their seconds, batches, images and the version."""

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128)
_CLIENT_CLOSED: Final = 499
"""Status that is counted if the client disconnected before the response."""


class Metrics:
    """The metrics of one server, in their own registry.

    Args:
        queue_depth: returns the number of images being processed.
        version: returns the number of the served version, 0 for none.
    """

    def __init__(self, *, queue_depth: Callable[[], int], version: Callable[[], int]):
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "keras_transfer_requests", "Requests by status", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "keras_transfer_request_seconds",
            "Seconds from request head to response",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "keras_transfer_batch_size", "Images in a batch", buckets=_BATCHES, registry=registry
        )
        self._images = Counter("keras_transfer_images", "Images predicted", registry=registry)
        depth = Gauge("keras_transfer_queue_depth", "Images being processed", registry=registry)
        depth.set_function(queue_depth)
        served = Gauge("keras_transfer_model_version", "Version that is served", registry=registry)
        served.set_function(version)

    def count_batch(self, num_images: int) -> None:
        """Count a batch and its images."""
        self._batches.observe(num_images)
        self._images.inc(num_images)

    def page(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class CountRequests:
    """ASGI middleware that counts requests by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = _CLIENT_CLOSED, time.perf_counter()

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            # One label per route: the number of different paths of clients is unbounded.
            route = getattr(scope.get("route"), "path_format", "other")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
