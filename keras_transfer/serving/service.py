"""Functions of the endpoints: predictions, status, metadata and card of one model, with limits."""

import asyncio
import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from keras_transfer.export.saved_model.signatures import BYTES, EXPLAIN, PIXELS, RESIZED
from keras_transfer.serving.images import ImageRows, Input, RowError
from keras_transfer.serving.metrics import Metrics
from keras_transfer.serving.protocol import (
    RefusedError,
    parse_request,
    write_json,
    write_response,
)
from keras_transfer.serving.protocol import Request as PredictRequest
from keras_transfer.serving.settings import Settings
from keras_transfer.serving.versions import BULK_PIXELS, NOT_LOADED, RETRY, Version, Versions

_log = logging.getLogger(__name__)

_MAX_LARGEST_BODIES: Final = 4
"""Most bodies in memory at once if all have the largest size; more if they are smaller."""
_MAX_LARGEST_REQUESTS: Final = 2
"""Most pixels of bulk requests at once, as a multiple of the most in one request."""
_PIXELS_OF_LISTS: Final = 20
"""Encoded pixels that are decoded in the time that one pixel in nested lists takes."""
_NUM_READERS: Final = 2
_SHORT_BODY: Final = 1_000_000
"""Bytes of a body whose images are read in less time than another thread takes to start."""
_RETRY: Final = {"Retry-After": "1"}


class Service:
    """One model with its versions, queue and metrics; `versions.start` starts it, `stop` ends it.

    Args:
        report: called with a sentence for each change of version.
    """

    def __init__(self, settings: Settings, *, report: Callable[[str], None]):
        self.metrics = Metrics(
            queue_depth=lambda: self._num_images, version=lambda: self.versions.number or 0
        )
        self.versions = Versions(settings, report=report, on_batch=self.metrics.count_batch)
        self.settings = settings
        self._num_images = 0
        self._num_bulk_pixels = 0
        self._bodies = _BodyReader(settings.max_body_bytes, settings.request_seconds)
        self._reader = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="read")
        # One at a time: gradients take memory, and predictions run at the same time.
        self._explainer = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._bulk_explainer = ThreadPoolExecutor(1, thread_name_prefix="explain-bulk")

    async def predict(self, request: Request, name: str, version: int | None = None) -> Response:
        """Respond to a `predict` request.

        Raises:
            RefusedError: the request is invalid or exceeds a limit, or the model failed.
        """
        body = await self._bodies.read(request)
        try:
            with self.versions.use(name, version) as loaded:
                parsed = parse_request(body, loaded.inputs)
                columns = await self._run(loaded, parsed, num_bytes=len(body))
        finally:
            self._bodies.release(body)
        try:
            return json_response(write_response(columns, in_rows=parsed.in_rows))
        except ValueError as error:
            raise RefusedError(503, "Model output contains NaN or Inf") from error

    def status(self, name: str, version: int | None = None) -> dict[str, Any]:
        """The states of all versions, or of one.

        Raises:
            RefusedError: 404 for another name or number, 503 if no version is known yet.
        """
        states = self.versions.states()
        if name != self.versions.name:
            raise RefusedError(
                404,
                f"Could not find any versions of model {name}; this server has the model "
                f"{self.versions.name}",
            )
        if not states:
            raise RefusedError(503, NOT_LOADED, headers=RETRY)
        if version is not None and version not in states:
            raise RefusedError(404, f"Could not find version {version} of model {name}")
        chosen = states if version is None else {version: states[version]}
        return {"model_version_status": list(chosen.values())}

    def metadata(self, name: str, version: int | None = None) -> dict[str, Any]:
        """The inputs and outputs of the signatures.

        Raises:
            RefusedError: 404 for another name or number, 503 if no version is loaded.
        """
        with self.versions.use(name, version) as loaded:
            spec = {"name": name, "signature_name": "", "version": str(loaded.number)}
            signatures = {"signature_def": {"signature_def": loaded.signature_def}}
            return {"model_spec": spec, "metadata": signatures}

    def card(self) -> dict[str, Any]:
        """The card of the served version.

        Raises:
            RefusedError: 503 if no version is loaded.
        """
        with self.versions.use(self.versions.name) as version:
            # --name may have changed the name that requests must use.
            return {**version.card, "name": self.versions.name}

    def readiness(self) -> dict[str, str]:
        """Whether requests can be served.

        Raises:
            RefusedError: 503 if no version is loaded.
        """
        with self.versions.use(self.versions.name):
            return {"status": "ready"}

    def stop(self) -> None:
        """End all threads."""
        for executor in (self._reader, self._explainer, self._bulk_explainer):
            executor.shutdown(cancel_futures=True)
        self.versions.stop()

    async def _run(
        self, version: Version, request: PredictRequest, *, num_bytes: int
    ) -> dict[str, list[Any]]:
        """Outputs of a request's rows, one column per output, within the limits on images."""
        num_rows, limits = request.num_rows, self.settings
        if num_rows > limits.max_instances:
            raise RefusedError(422, f"{num_rows} rows are more than {limits.max_instances}")
        # Only the event loop's thread reads and changes the count.
        if self._num_images + num_rows > limits.max_queue:
            raise RefusedError(
                429,
                f"{self._num_images} images are being processed, of at most {limits.max_queue}",
                headers=_RETRY,
            )
        self._num_images += num_rows
        try:
            rows, num_pixels = await self._read(version.images, request, num_bytes=num_bytes)
            with self._reserving(version, sum(num_pixels)):
                if request.signature == EXPLAIN:
                    return await self._explain(version, request, rows, sum(num_pixels))
                return await _predict(version, request, rows, num_pixels)
        finally:
            self._num_images -= num_rows

    async def _read(
        self, images: ImageRows, request: PredictRequest, *, num_bytes: int
    ) -> tuple[Sequence[Any], Sequence[int]]:
        """The rows of images, with checked headers where they are encoded, and their pixels."""
        if request.signature in (BYTES, EXPLAIN):
            call = functools.partial(_read_headers, images, request)
            is_short = num_bytes <= _SHORT_BODY
            loop = asyncio.get_running_loop()
            read = call() if is_short else await loop.run_in_executor(self._reader, call)
            rows, num_pixels = zip(*read, strict=True)
            return rows, num_pixels
        (column,) = request.columns.values()
        _check_equal_sizes(request, column)
        return column, [_PIXELS_OF_LISTS * math.prod(_outer_size(value)) for value in column]

    @contextlib.contextmanager
    def _reserving(self, version: Version, num_pixels: int) -> Iterator[None]:
        """Count the pixels of a bulk request while they are processed.

        Raises:
            RefusedError: 422 for too many pixels in one request, 429 in all bulk requests.
        """
        most = 1e6 * self.settings.max_request_megapixels
        if version.images.max_megapixels * 1e6 < num_pixels > most:
            words = f"The images take {num_pixels / 1e6:.1f} megapixels, of at most {most / 1e6:g}"
            raise RefusedError(422, f"{words}; send fewer in each request, or smaller ones")
        bulk = num_pixels if num_pixels > BULK_PIXELS else 0
        if bulk and self._num_bulk_pixels + bulk > _MAX_LARGEST_REQUESTS * max(most, bulk):
            raise RefusedError(429, "Too many large images at once", headers=_RETRY)
        self._num_bulk_pixels += bulk
        try:
            yield
        finally:
            self._num_bulk_pixels -= bulk

    async def _explain(
        self, version: Version, request: PredictRequest, rows: Sequence[bytes], num_pixels: int
    ) -> dict[str, list[Any]]:
        is_bulk = num_pixels > BULK_PIXELS
        executor = self._bulk_explainer if is_bulk else self._explainer
        loop = asyncio.get_running_loop()
        call = functools.partial(_explain, version, request, rows, is_bulk=is_bulk)
        return await loop.run_in_executor(executor, call)


def _read_headers(images: ImageRows, request: PredictRequest) -> list[tuple[bytes, int]]:
    read = []
    for number, value in enumerate(request.columns["image_bytes"]):
        try:
            read.append(images.header(value))
        except Exception as error:
            raise _refusal(request, number, error) from error
    return read


async def _predict(
    version: Version, request: PredictRequest, values: Sequence[Any], num_pixels: Sequence[int]
) -> dict[str, list[Any]]:
    """Outputs of a request's rows, batched with those of other requests."""
    images = version.images
    readers: dict[str, Callable[[Any], Input]] = {
        BYTES: images.encoded,
        PIXELS: images.resized,
        RESIZED: images.unchanged,
    }
    read = readers[request.signature]
    calls = [functools.partial(read, value) for value in values]
    futures = version.submit(calls, num_pixels=num_pixels)
    rows: list[Any] = []
    try:
        for number, future in enumerate(futures):
            try:
                rows.append(await asyncio.wrap_future(future))
            except Exception as error:
                raise _refusal(request, number, error) from error
    finally:
        for future in futures:  # If one row is invalid, the results of the others are not needed.
            future.cancel()
    columns = {name: [row[name].tolist() for row in rows] for name in rows[0]}
    if request.signature == RESIZED:
        return columns
    return version.named(columns)


def _explain(
    version: Version, request: PredictRequest, rows: Sequence[bytes], *, is_bulk: bool
) -> dict[str, list[Any]]:
    """Outputs of `serving_explain`; every row is checked first."""
    images, encoded, indices = version.images, [], []
    with version.bulk_slots if is_bulk else contextlib.nullcontext():
        columns = zip(rows, request.columns["class_index"], strict=True)
        for number, (data, class_index) in enumerate(columns):
            try:
                indices.append(images.class_index(class_index))
                encoded.append(images.encoded(data))
                images.decode(encoded[-1])
            except Exception as error:
                raise _refusal(request, number, error) from error
        try:
            return version.explain(encoded, indices)
        except Exception as error:
            raise _refusal(request, 0, error) from error


def _refusal(request: PredictRequest, row: int, error: Exception) -> RefusedError:
    """Clients get the reason why a row is invalid; other errors go to the log only."""
    if isinstance(error, RowError):
        return RefusedError(error.status, f"{request.label(row)}: {error}")
    _log.error("the model failed: %s", error, exc_info=error)
    return RefusedError(503, "The model failed; see the server's log")


def _check_equal_sizes(request: PredictRequest, column: Sequence[Any]) -> None:
    """The rows of a request are one tensor in TensorFlow Serving, so their sizes must be equal."""
    expected = _outer_size(column[0])
    for row, value in enumerate(column):
        size = _outer_size(value)
        if size != expected:
            words = f"Expecting shape {list(expected)} but got: {list(size)}"
            raise RefusedError(400, f"{request.label(row)}: {words}")


def _outer_size(value: Any) -> tuple[int, ...]:
    """Height and width of nested lists."""
    if isinstance(value, dict):
        raise RefusedError(400, "Pixels must be nested lists, received an object")
    if not isinstance(value, list) or not value:
        return ()
    return (len(value), len(value[0])) if isinstance(value[0], list) else (len(value),)


class _BodyReader:
    """Reads request bodies of at most `max_bytes` within `max_seconds`, and limits their sum."""

    def __init__(self, max_bytes: int, max_seconds: float):
        self._max_bytes, self._max_seconds = max_bytes, max_seconds
        self._num_bytes = 0

    async def read(self, request: Request) -> bytes:
        """The body, which counts as held in memory until it is given to `release`.

        Raises:
            RefusedError: 408 too slow, 413 too large, 415 compressed, 429 with too many others.
            ClientDisconnect: the connection ended before the body.
        """
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.strip().lower() not in ("", "identity"):
            raise RefusedError(415, f"Content-Encoding {encoding[:40]!r}: send plain JSON")
        body = bytearray()
        try:
            async with asyncio.timeout(self._max_seconds):
                async for chunk in request.stream():
                    self._check(len(body) + len(chunk), len(chunk))
                    body += chunk
                    self._num_bytes += len(chunk)
        except TimeoutError as error:
            self.release(body)
            words = f"The request did not arrive within {self._max_seconds:g} s"
            raise RefusedError(408, words, headers={"Connection": "close"}) from error
        except BaseException:
            self.release(body)
            raise
        return bytes(body)

    def release(self, body: bytes | bytearray) -> None:
        """Stop counting a body."""
        self._num_bytes -= len(body)

    def _check(self, size: int, added: int) -> None:
        if size > self._max_bytes:
            raise RefusedError(413, f"The body has more than {self._max_bytes / 1e6:g} MB")
        if self._num_bytes + added > _MAX_LARGEST_BODIES * self._max_bytes:
            raise RefusedError(429, "Too many large bodies at once", headers=_RETRY)


def json_response(
    content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response of plain values, or of bytes that are JSON already."""
    body = content if isinstance(content, bytes) else write_json(content)
    return Response(body, status_code=status, headers=headers, media_type="application/json")
