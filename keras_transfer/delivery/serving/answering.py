"""From a request's rows to its answer: decoded by threads, batched with others, put in order."""

import asyncio
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from keras_transfer.delivery.saved_model.signatures import BYTES, EXPLAIN, PIXELS, RESIZED
from keras_transfer.delivery.serving.batching import Batcher, Rows
from keras_transfer.delivery.serving.pictures import RowError
from keras_transfer.delivery.serving.protocol import RefusedError, Request
from keras_transfer.delivery.serving.version import Version

_log = logging.getLogger(__name__)

_NUM_DECODERS: Final = 2


class Answering:
    """Threads that answer requests, and the count of pictures they have taken on.

    Args:
        max_queue: pictures that may be taken on and not answered yet.
    """

    def __init__(self, max_queue: int):
        self.num_pictures = 0
        self._max_queue = max_queue
        self._decoders = ThreadPoolExecutor(_NUM_DECODERS, thread_name_prefix="decode")
        self._explainer = ThreadPoolExecutor(1, thread_name_prefix="explain")

    async def answer(self, version: Version, request: Request) -> dict[str, list[Any]]:
        """Columns of outputs, one value a row.

        Raises:
            RefusedError: 400 or 422 for the first bad row that was found, 429 with too many
                pictures under way, 503 if the network failed.
        """
        with self._admitted(request.num_rows):
            if request.signature == EXPLAIN:
                return await self._explain(version, request)
            prepare = {
                BYTES: version.pictures.decoded,
                PIXELS: version.pictures.resized,
                RESIZED: version.pictures.square,
            }[request.signature]
            (column,) = request.columns.values()
            if request.signature != BYTES:
                _check_equal_sizes(request, column)
            rows = await self._classify(version.batcher, request, column, prepare)
            if request.signature == RESIZED:
                return {name: [row[name].tolist() for row in rows] for name in rows[0]}
            return version.named(rows)

    def close(self) -> None:
        """End the threads; whatever still waits for them is not answered."""
        self._decoders.shutdown(cancel_futures=True)
        self._explainer.shutdown(cancel_futures=True)

    @contextmanager
    def _admitted(self, num_rows: int) -> Iterator[None]:
        # Only the event loop's thread comes here.
        if self.num_pictures + num_rows > self._max_queue:
            raise RefusedError(
                429,
                f"{self.num_pictures} pictures are waiting, of at most {self._max_queue}",
                headers={"Retry-After": "1"},
            )
        self.num_pictures += num_rows
        try:
            yield
        finally:
            self.num_pictures -= num_rows

    async def _classify(
        self,
        batcher: Batcher,
        request: Request,
        column: Sequence[Any],
        prepare: Callable[[Any], Any],
    ) -> list[Rows]:
        collected = _Collected(len(column))

        def make_ready(row: int) -> None:
            try:
                square = None if collected.is_done else _told(prepare, request, row, column[row])
            except RefusedError as error:
                square = None
                collected.put(row, error)
            if square is None:
                batcher.expect(-1)
            else:
                batcher.submit(square, functools.partial(collected.put, row))

        batcher.expect(len(column))
        for row in range(len(column)):
            self._decoders.submit(make_ready, row)
        return await collected.rows

    async def _explain(self, version: Version, request: Request) -> dict[str, list[Any]]:
        loop = asyncio.get_running_loop()
        pictures, columns = version.pictures, request.columns
        indices = [
            _told(pictures.class_index, request, row, value)
            for row, value in enumerate(columns["class_index"])
        ]

        def check(value: Any) -> bytes:
            encoded = pictures.decodable(value)
            pictures.square_of(encoded)
            return encoded

        encoded = await asyncio.gather(
            *(
                loop.run_in_executor(self._decoders, _told, check, request, row, value)
                for row, value in enumerate(columns["image_bytes"])
            )
        )
        try:
            return await loop.run_in_executor(self._explainer, version.explain, encoded, indices)
        except Exception as error:  # Said in the log; a client is told no more than that.
            raise _failed(error) from error


class _Collected:
    """The rows of one answer, put in from any thread; `rows` is awaited in the event loop's."""

    def __init__(self, num_rows: int):
        self._loop = asyncio.get_running_loop()
        self.rows: asyncio.Future[list[Rows]] = self._loop.create_future()
        self.is_done = False
        self._found: list[Any] = [None] * num_rows
        self._missing = num_rows
        self._lock = threading.Lock()

    def put(self, row: int, value: Rows | BaseException) -> None:
        """Take a row, or what became of it instead: the first error is the request's."""
        with self._lock:
            if self.is_done:
                return
            self._found[row] = value
            self._missing -= 1
            self.is_done = self._missing == 0 or isinstance(value, BaseException)
            if self.is_done:
                self._loop.call_soon_threadsafe(self._finish, value)

    def _finish(self, last: Rows | BaseException) -> None:
        if self.rows.done():  # Nobody waits any more.
            return
        if isinstance(last, RefusedError):
            self.rows.set_exception(last)
        elif isinstance(last, BaseException):
            self.rows.set_exception(_failed(last))
        else:
            self.rows.set_result(self._found)


def _told(prepare: Callable[[Any], Any], request: Request, row: int, value: Any) -> Any:
    """What `prepare` makes of a row's value; errors name the row."""
    try:
        return prepare(value)
    except RowError as error:
        raise RefusedError(error.status, f"{request.label(row)}: {error}") from error
    except Exception as error:
        raise _failed(error) from error


def _failed(error: BaseException) -> RefusedError:
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
    if not isinstance(value, list) or not value:
        return ()
    return (len(value), len(value[0])) if isinstance(value[0], list) else (len(value),)
