"""Dynamic batching: images of concurrent requests are decoded and predicted together.

A worker takes the waiting images, up to the largest batch. It waits for more only while another
batch is running, and at most `max_wait`: a single image on an idle server runs at once.

Requests take turns by pixels: an image is due when as many pixels have run as its request has up to
it. So a request with a few pixels does not wait for all of an earlier one with many.
Source: Golestani, A self-clocked fair queueing scheme (1994).
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, order=True, slots=True)
class _Item:
    turn: int
    number: int
    num_pixels: int
    image: Any = field(compare=False)
    future: Future[Any] = field(default_factory=Future, compare=False)
    since: float = field(default_factory=time.monotonic, compare=False)


class Batcher:
    """A queue of images in front of one network.

    Args:
        run: maps B images to B results; an exception among them fails only its image.
        sizes: allowed batch sizes, ascending, the first being 1. A few fixed sizes let TensorFlow
            reuse its kernels.
        max_pixels: of a batch of several images.
        max_wait: seconds.
        num_workers: batches running at once.
        on_batch: called with the number of images of each batch.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], Sequence[Any]],
        *,
        sizes: Sequence[int],
        max_pixels: int,
        max_wait: float,
        num_workers: int,
        on_batch: Callable[[int], None],
    ):
        self._run, self._sizes, self._max_wait, self._on_batch = run, sizes, max_wait, on_batch
        self._max_pixels = max_pixels
        self._queue: list[_Item] = []
        self._numbers = itertools.count()
        self._turn = 0
        self._num_busy = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._workers = [
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True)
            for number in range(num_workers)
        ]
        for worker in self._workers:
            worker.start()

    def submit(self, images: Sequence[Any], *, num_pixels: Sequence[int]) -> list[Future[Any]]:
        """Queue the images of a request, with the pixels of each.

        Each future has its image's result, or the error of the image or its batch.
        """
        with self._changed:
            turns = itertools.accumulate(num_pixels, initial=self._turn)
            next(turns)
            rows = zip(turns, self._numbers, num_pixels, images, strict=False)
            items = [_Item(*row) for row in rows]
            if self._is_closed:
                _fail(items, "the queue is closed")
                return [item.future for item in items]
            was_short = len(self._queue) < self._sizes[-1]
            was_empty = not self._queue
            for item in items:
                heapq.heappush(self._queue, item)
            # Notifying a worker of every image of a growing batch would slow the batch down.
            if was_empty or (was_short and len(self._queue) >= self._sizes[-1]):
                self._changed.notify()
        return [item.future for item in items]

    def close(self) -> None:
        """Finish the running batches, fail the queued images and end the workers."""
        with self._changed:
            self._is_closed = True
            queued = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        _fail(queued, "the queue was closed")
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while taken := self._take():
            if items := [item for item in taken if not item.future.cancelled()]:
                self._run_batch(items)
            with self._changed:
                self._num_busy -= 1
                self._changed.notify()

    def _run_batch(self, items: Sequence[_Item]) -> None:
        self._on_batch(len(items))
        results: Sequence[Any]
        try:
            results = self._run([item.image for item in items])
        except Exception as error:  # Every waiting request must get the error.
            results = [error] * len(items)
        for item, result in zip(items, results, strict=True):
            _finish(item.future, result)

    def _take(self) -> list[_Item]:
        with self._changed:
            while not self._is_due():
                if self._is_closed and not self._queue:
                    return []
                self._changed.wait(self._max_wait if self._queue else None)
            items = self._pop_batch()
            self._num_busy += 1
            if self._queue:
                self._changed.notify()
            return items

    def _pop_batch(self) -> list[_Item]:
        """The next images: at least one, more of them within the limit on pixels."""
        most = self._sizes[-1]
        items = heapq.nsmallest(most, self._queue)
        sums = itertools.accumulate(item.num_pixels for item in items)
        fitting = max(1, sum(pixels <= self._max_pixels for pixels in sums))
        size = max(size for size in self._sizes if size <= fitting)
        popped = [heapq.heappop(self._queue) for _ in range(size)]
        self._turn = popped[-1].turn
        return popped

    def _is_due(self) -> bool:
        if not self._queue:
            return False
        is_full = len(self._queue) >= self._sizes[-1]
        waited = time.monotonic() - min(item.since for item in self._queue)
        return is_full or not self._num_busy or waited >= self._max_wait


def _fail(items: Sequence[_Item], reason: str) -> None:
    for item in items:
        _finish(item.future, RuntimeError(reason))


def _finish(future: Future[Any], result: Any) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24 … and the largest."""
    sizes = {max_batch}
    size = 1
    while size < max_batch:
        sizes |= {size, min(size * 3 // 2, max_batch)}
        size *= 2
    return tuple(sorted(sizes))
