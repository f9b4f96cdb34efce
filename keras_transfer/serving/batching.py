"""Dynamic batching: images of concurrent requests are decoded and classified together.

A worker takes whatever waits, up to the largest batch. It waits for more only while another batch
is under way, and never longer than `max_wait`: a lone image is answered at once.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

NUM_WORKERS: Final = 2
"""Batches under way at once: while one is decoded, the other goes through the network."""

Done = Callable[[Any], None]


@dataclass(frozen=True, eq=False, slots=True)
class _Item:
    image: Any
    done: Done
    since: float


class Batcher:
    """A queue of images before one network.

    Args:
        run: maps B images to B results, one of which may be what became of it instead.
        sizes: sizes of batches, ascending, the first being 1; others would have TensorFlow build
            kernels anew, and more of them than it keeps.
        on_batch: told the number of images in each batch.
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

    def submit(self, image: Any, done: Done) -> None:
        """Queue an image; `done` gets its result, or what the whole batch failed with."""
        with self._changed:
            if not self._is_closed:
                self._queue.append(_Item(image, done, time.monotonic()))
                # Waking a worker for every image of a growing batch costs more than it gains.
                if len(self._queue) in (1, self._sizes[-1]):
                    self._changed.notify()
                return
        done(RuntimeError("the queue is closed"))

    def close(self) -> None:
        """Finish the batches under way and end the workers; what is queued still fails."""
        with self._changed:
            self._is_closed = True
            left = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for item in left:
            item.done(RuntimeError("the queue was closed"))
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while items := self._take():
            self._on_batch(len(items))
            results: Sequence[Any]
            try:
                results = self._run([item.image for item in items])
            except Exception as error:  # Whatever it is, those who wait must hear of it.
                results = [error] * len(items)
            for item, result in zip(items, results, strict=True):
                item.done(result)
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


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24 … and the largest."""
    sizes = {max_batch}
    size = 1
    while size < max_batch:
        sizes |= {size, min(size * 3 // 2, max_batch)}
        size *= 2
    return tuple(sorted(sizes))
