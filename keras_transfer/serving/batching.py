"""Dynamic batching: images of concurrent requests are decoded and predicted together.

A worker takes the waiting images, up to the largest batch. It waits for more only while another
batch is running, and at most `max_wait`: a single image on an idle server runs at once.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

NUM_WORKERS: Final = 2
"""Batches running at once: one is decoded while the network computes the other."""


@dataclass(frozen=True, eq=False, slots=True)
class _Item:
    image: Any
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """A queue of images in front of one network.

    Args:
        run: maps B images to B results; an exception among them fails only its image.
        sizes: allowed batch sizes, ascending, the first being 1. A few fixed sizes let TensorFlow
            reuse its kernels.
        max_wait: seconds.
        on_batch: called with the number of images of each batch.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], Sequence[Any]],
        *,
        sizes: Sequence[int],
        max_wait: float,
        on_batch: Callable[[int], None],
    ):
        self._run, self._sizes, self._max_wait, self._on_batch = run, sizes, max_wait, on_batch
        self._queue: deque[_Item] = deque()
        self._num_busy = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._workers = [
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True)
            for number in range(NUM_WORKERS)
        ]
        for worker in self._workers:
            worker.start()

    def submit(self, image: Any) -> Future[Any]:
        """Queue an image; the future has its result, or the error of the image or its batch."""
        item = _Item(image)
        with self._changed:
            if self._is_closed:
                item.future.set_exception(RuntimeError("the queue is closed"))
                return item.future
            self._queue.append(item)
            # Notifying a worker of every image of a growing batch would slow the batch down.
            if len(self._queue) in (1, self._sizes[-1]):
                self._changed.notify()
        return item.future

    def close(self) -> None:
        """Finish the running batches, fail the queued images and end the workers."""
        with self._changed:
            self._is_closed = True
            queued = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for item in queued:
            _finish(item.future, RuntimeError("the queue was closed"))
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while items := self._take():
            self._on_batch(len(items))
            results: Sequence[Any]
            try:
                results = self._run([item.image for item in items])
            except Exception as error:  # Every waiting request must get the error.
                results = [error] * len(items)
            for item, result in zip(items, results, strict=True):
                _finish(item.future, result)
            with self._changed:
                self._num_busy -= 1
                self._changed.notify()

    def _take(self) -> list[_Item]:
        with self._changed:
            while not self._is_due():
                if self._is_closed and not self._queue:
                    return []
                self._changed.wait(self._max_wait if self._queue else None)
            size = max(size for size in self._sizes if size <= len(self._queue))
            items = [self._queue.popleft() for _ in range(size)]
            self._num_busy += 1
            if self._queue:
                self._changed.notify()
            return items

    def _is_due(self) -> bool:
        if not self._queue:
            return False
        is_full = len(self._queue) >= self._sizes[-1]
        waited = time.monotonic() - self._queue[0].since
        return is_full or not self._num_busy or waited >= self._max_wait


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
