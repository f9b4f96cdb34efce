"""The queue: sizes of batches, whose answer is whose, and what happens when the network fails."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from keras_transfer.serving.batching import Batcher, batch_sizes


def make(run: Callable[[list[Any]], list[Any]], *, sizes=(1, 2, 3, 4, 6, 8), max_wait=0.01):
    seen: list[int] = []
    return Batcher(run, sizes=sizes, max_wait=max_wait, on_batch=seen.append), seen


def submit(batcher: Batcher, image: Any) -> Future:
    future: Future = Future()
    batcher.submit(image, future.set_result)
    return future


def test_answers_belong_to_their_requests_under_concurrency():
    def square(numbers: list[int]) -> list[int]:
        time.sleep(0.001)
        return [number**2 for number in numbers]

    batcher, seen = make(square)
    wrong = []

    def ask(first: int) -> None:
        for number in range(first, first + 200):
            if submit(batcher, number).result(10) != number**2:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(1000 * n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert wrong == []
    assert sum(seen) == 16 * 200
    assert set(seen) <= {1, 2, 3, 4, 6, 8}
    assert max(seen) > 1


def test_a_lone_image_does_not_wait_for_company():
    batcher, _ = make(lambda images: images, max_wait=30)
    begun = time.monotonic()
    assert submit(batcher, 7).result(10) == 7
    assert time.monotonic() - begun < 5
    batcher.close()


def test_company_is_waited_for_while_another_batch_is_under_way():
    gate = threading.Event()

    def run(images: list[int]) -> list[int]:
        if images == [0]:
            gate.wait(10)
        return images

    batcher, seen = make(run, max_wait=20)
    first = submit(batcher, 0)
    while not seen:
        time.sleep(0.01)
    others = [submit(batcher, number) for number in range(1, 9)]
    assert [other.result(10) for other in others] == list(range(1, 9))
    assert seen == [1, 8]
    gate.set()
    assert first.result(10) == 0
    batcher.close()


def test_a_failing_network_is_told_to_everybody_and_the_queue_goes_on():
    def run(images: list[int]) -> list[int]:
        if 13 in images:
            raise MemoryError("too much")
        return images

    batcher, _ = make(run)
    assert isinstance(submit(batcher, 13).result(10), MemoryError)
    assert submit(batcher, 1).result(10) == 1
    batcher.close()


def test_a_closed_queue_finishes_what_runs_and_refuses_the_rest():
    gate = threading.Event()

    def run(images: list[int]) -> list[int]:
        gate.wait(10)
        return images

    batcher, seen = make(run, sizes=(1,), max_wait=0.0)
    futures = [submit(batcher, number) for number in range(3)]
    while len(seen) < 2:
        time.sleep(0.01)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    assert isinstance(futures[2].result(10), RuntimeError)
    gate.set()
    closing.join()
    assert [futures[0].result(10), futures[1].result(10)] == [0, 1]
    assert isinstance(submit(batcher, 4).result(10), RuntimeError)


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(1, (1,)), (2, (1, 2)), (5, (1, 2, 3, 4, 5)), (32, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))],
)
def test_sizes_are_few_and_end_with_the_largest(largest, sizes):
    assert batch_sizes(largest) == sizes
