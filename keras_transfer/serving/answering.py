"""From a request's rows to its answer: queued with others' rows, and put in order again."""

import asyncio
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from keras_transfer.export.saved_model.signatures import BYTES, EXPLAIN, PIXELS, RESIZED
from keras_transfer.serving.image_rows import RowError
from keras_transfer.serving.protocol import RefusedError, Request
from keras_transfer.serving.version import Rows, Version

_log = logging.getLogger(__name__)


class Answering:
    """Answers requests, and counts the images it has taken on.

    Args:
        max_queue: images that may be taken on and not answered yet.
    """

    def __init__(self, max_queue: int):
        self.num_images = 0
        self._max_queue = max_queue
        # One at a time: a heat map's gradients take memory, and classifying goes on beside it.
        self._explainer = ThreadPoolExecutor(1, thread_name_prefix="explain")

    async def answer(self, version: Version, request: Request) -> dict[str, list[Any]]:
        """Columns of outputs, one value a row.

        Raises:
            RefusedError: 400 or 422 for the first bad row that was found, 429 with too many
                images under way, 503 if the network failed.
        """
        num_rows = request.num_rows
        # Only the event loop's thread comes here.
        if self.num_images + num_rows > self._max_queue:
            raise RefusedError(
                429,
                f"{self.num_images} images are under way, of at most {self._max_queue}",
                headers={"Retry-After": "1"},
            )
        self.num_images += num_rows
        try:
            if request.signature == EXPLAIN:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._explainer, _explain, version, request)
            return await self._classify(version, request)
        finally:
            self.num_images -= num_rows

    def close(self) -> None:
        """End the thread; whatever still waits for it is not answered."""
        self._explainer.shutdown(cancel_futures=True)

    async def _classify(self, version: Version, request: Request) -> dict[str, list[Any]]:
        images = version.images
        read: dict[str, Callable[[Any], Any]] = {
            BYTES: images.decodable,
            PIXELS: images.resized,
            RESIZED: images.square,
        }
        (column,) = request.columns.values()
        if request.signature != BYTES:
            _check_equal_sizes(request, column)
        collected = _Collected(request)
        for row, value in enumerate(column):
            version.batcher.submit(
                functools.partial(read[request.signature], value),
                functools.partial(collected.put, row),
            )
        rows = await collected.rows
        if request.signature == RESIZED:
            return {name: [row[name].tolist() for row in rows] for name in rows[0]}
        return version.named(rows)


class _Collected:
    """The rows of one answer, put in from any thread; `rows` is awaited in the event loop's."""

    def __init__(self, request: Request):
        self._request = request
        self._loop = asyncio.get_running_loop()
        self.rows: asyncio.Future[list[Rows]] = self._loop.create_future()
        self._found: list[Any] = [None] * request.num_rows
        self._missing = request.num_rows
        self._is_done = False
        self._lock = threading.Lock()

    def put(self, row: int, result: Rows | Exception) -> None:
        """Take a row, or what became of it instead: the first error is the request's."""
        with self._lock:
            if self._is_done:
                return
            self._found[row] = result
            self._missing -= 1
            self._is_done = self._missing == 0 or isinstance(result, Exception)
            if not self._is_done:
                return
        error = _refusal(self._request, row, result) if isinstance(result, Exception) else None
        self._loop.call_soon_threadsafe(self._finish, error)

    def _finish(self, error: RefusedError | None) -> None:
        if self.rows.done():  # Nobody waits any more.
            return
        if error is not None:
            self.rows.set_exception(error)
        else:
            self.rows.set_result(self._found)


def _explain(version: Version, request: Request) -> dict[str, list[Any]]:
    """Heat maps of a request's rows, each of which is checked on its own before."""
    images, encoded, indices = version.images, [], []
    columns = zip(request.columns["image_bytes"], request.columns["class_index"], strict=True)
    for row, (value, class_index) in enumerate(columns):
        try:
            indices.append(images.class_index(class_index))
            encoded.append(images.decodable(value))
            images.square_of(encoded[-1])
        except Exception as error:
            raise _refusal(request, row, error) from error
    try:
        return version.explain(encoded, indices)
    except Exception as error:
        raise _refusal(request, 0, error) from error


def _refusal(request: Request, row: int, error: Exception) -> RefusedError:
    """What a client is told of an error: its own in full, others are said in the log."""
    if isinstance(error, RowError):
        return RefusedError(error.status, f"{request.label(row)}: {error}")
    _log.error("the model failed: %s", error, exc_info=error)
    return RefusedError(503, "The model failed; the server's log says why")


def _check_equal_sizes(request: Request, column: Sequence[Any]) -> None:
    """Rows of one request are one tensor in TensorFlow Serving, so their sizes must be equal."""
    expected = _outer_size(column[0])
    for row, value in enumerate(column):
        if _outer_size(value) != expected:
            raise RefusedError(
                400,
                f"{request.label(row)}: Expecting shape {list(expected)} "
                f"but got: {list(_outer_size(value))}",
            )


def _outer_size(value: Any) -> tuple[int, ...]:
    """Height and width of nested lists."""
    if isinstance(value, dict):
        raise RefusedError(400, "Pixels must be nested lists, received an object")
    if not isinstance(value, list) or not value:
        return ()
    return (len(value), len(value[0])) if isinstance(value[0], list) else (len(value),)
