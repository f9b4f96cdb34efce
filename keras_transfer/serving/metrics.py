"""What a server counts, for Prometheus: requests, their seconds, batches, images, the version."""

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One server's counts, in a registry of its own.

    Args:
        waiting: how many images are taken on and not answered yet.
        version: number of the version that answers, 0 for none.
    """

    def __init__(self, *, waiting: Callable[[], int], version: Callable[[], int]):
        self._registry = CollectorRegistry()
        prefix, registry = "keras_transfer", self._registry
        self._requests = Counter(
            f"{prefix}_requests", "Requests by status", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            f"{prefix}_request_seconds",
            "Seconds from head to answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            f"{prefix}_batch_size", "Images in a batch", buckets=_BATCHES, registry=registry
        )
        self._images = Counter(f"{prefix}_images", "Images classified", registry=registry)
        gauge = Gauge(f"{prefix}_queue_depth", "Images not answered yet", registry=registry)
        gauge.set_function(waiting)
        gauge = Gauge(f"{prefix}_model_version", "Version that answers", registry=registry)
        gauge.set_function(version)

    def count_batch(self, num_images: int) -> None:
        """A batch of so many images is about to go through the network."""
        self._batches.observe(num_images)
        self._images.inc(num_images)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def page(self) -> bytes:
        """Everything counted, in Prometheus's text format."""
        return generate_latest(self._registry)


class Counted:
    """An ASGI application whose requests are counted by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # Nobody was there any more to be answered.
        started = time.perf_counter()

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            # Paths as clients write them would be endlessly many.
            route = getattr(scope.get("route"), "path_format", "other")
            self._metrics.count_request(route, status, time.perf_counter() - started)
