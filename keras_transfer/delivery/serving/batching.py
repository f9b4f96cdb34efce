"""Dynamic batching: squares of concurrent requests go through the network together.

A worker takes whatever waits, up to the largest batch. It waits for more only while other pictures
are being decoded, and never longer than `max_wait`: a lone picture is answered at once.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

Rows = dict[str, np.ndarray]
"""Outputs by name, [B, …], or one row of them."""

NUM_WORKERS: Final = 2
"""Batches under way at once: while one is copied, the other runs."""


@dataclass(frozen=True, eq=False, slots=True)
class _Item:
    square: np.ndarray
    done: Callable[[Rows | BaseException], None]
    since: float


class Batcher:
    """A queue of squares before one network.

    Args:
        run: maps uint8 [B, S, S, 3] to outputs [B, …]; B is one of `sizes`.
        sizes: accepted batch sizes, ascending; batches are filled up with black squares.
        on_batch: told the number of pictures in each batch.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], Rows],
        *,
        sizes: Sequence[int],
        max_wait: float,
        on_batch: Callable[[int], None],
    ):
        self._run, self._sizes, self._max_wait, self._on_batch = run, sizes, max_wait, on_batch
        self._queue: deque[_Item] = deque()
        self._coming = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._workers = [
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True)
            for number in range(NUM_WORKERS)
        ]
        for worker in self._workers:
            worker.start()

    def expect(self, number: int) -> None:
        """So many pictures are on their way; each must end in `submit` or `expect(-1)`."""
        with self._changed:
            self._coming += number
            if self._coming == 0:
                self._changed.notify()

    def submit(self, square: np.ndarray, done: Callable[[Rows | BaseException], None]) -> None:
        """Queue a picture; `done` gets its rows, or what the network failed with."""
        with self._changed:
            self._coming -= 1
            self._queue.append(_Item(square, done, time.monotonic()))
            # Waking a worker for every picture of a growing batch would cost more than it gains.
            if self._coming == 0 or len(self._queue) in (1, self._sizes[-1]):
                self._changed.notify()

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
            self._answer(items)

    def _take(self) -> list[_Item]:
        with self._changed:
            while True:
                while not self._queue:
                    if self._is_closed:
                        return []
                    self._changed.wait()
                left = self._queue[0].since + self._max_wait - time.monotonic()
                if left <= 0 or not self._coming or len(self._queue) >= self._sizes[-1]:
                    break
                self._changed.wait(left)
            taken = min(len(self._queue), self._sizes[-1])
            items = [self._queue.popleft() for _ in range(taken)]
            if self._queue:
                self._changed.notify()
            return items

    def _answer(self, items: list[_Item]) -> None:
        self._on_batch(len(items))
        try:
            outputs = self._run(self._filled_up([item.square for item in items]))
        except Exception as error:  # Whatever the network fails with, those who wait must hear it.
            for item in items:
                item.done(error)
            return
        for number, item in enumerate(items):
            item.done({name: rows[number] for name, rows in outputs.items()})

    def _filled_up(self, squares: list[np.ndarray]) -> np.ndarray:
        size = next(size for size in self._sizes if size >= len(squares))
        batch = np.zeros((size, *squares[0].shape), np.uint8)
        np.stack(squares, out=batch[: len(squares)])
        return batch


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Powers of two up to the largest batch, and that itself."""
    sizes = [1]
    while sizes[-1] < max_batch:
        sizes.append(min(2 * sizes[-1], max_batch))
    return tuple(sizes)
