"""The queue: batch sizes, which result belongs to which image, and failures of the network."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from keras_transfer.serving.batching import Batcher, batch_sizes


class Queue(Batcher):
    """A batcher whose requests have one image of one pixel."""

    def put(self, image: Any) -> Future[Any]:
        (future,) = self.submit([image], num_pixels=[1])
        return future


def make(run: Callable[[list[Any]], list[Any]], *, sizes=(1, 2, 3, 4, 6, 8), **options):
    seen: list[int] = []
    options = {"max_wait": 0.01, "max_pixels": 1000, "num_workers": 2} | options
    return Queue(run, sizes=sizes, on_batch=seen.append, **options), seen


def test_results_belong_to_their_images_under_concurrency():
    def square(numbers: list[int]) -> list[int]:
        time.sleep(0.001)
        return [number**2 for number in numbers]

    batcher, seen = make(square)
    wrong = []

    def submit_many(first: int) -> None:
        for number in range(first, first + 200):
            if batcher.put(number).result(10) != number**2:
                wrong.append(number)

    threads = [threading.Thread(target=submit_many, args=(1000 * n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert wrong == []
    assert sum(seen) == 16 * 200
    assert set(seen) <= {1, 2, 3, 4, 6, 8}
    assert max(seen) > 1


def test_a_single_image_on_an_idle_server_runs_at_once():
    batcher, _ = make(lambda images: images, max_wait=30)
    begun = time.monotonic()
    assert batcher.put(7).result(10) == 7
    assert time.monotonic() - begun < 5
    batcher.close()


def test_images_wait_for_more_while_another_batch_is_running():
    gate = threading.Event()

    def run(images: list[int]) -> list[int]:
        if images == [0]:
            gate.wait(10)
        return images

    batcher, seen = make(run, max_wait=20)
    first = batcher.put(0)
    while not seen:
        time.sleep(0.01)
    others = [batcher.put(number) for number in range(1, 9)]
    assert [other.result(10) for other in others] == list(range(1, 9))
    assert seen == [1, 8]
    gate.set()
    assert first.result(10) == 0
    batcher.close()


def test_a_failed_batch_fails_its_images_and_the_queue_goes_on():
    def run(images: list[int]) -> list[Any]:
        if 13 in images:
            raise MemoryError("too much")
        return [ValueError("odd") if image % 2 else image for image in images]

    batcher, _ = make(run)
    assert isinstance(batcher.put(13).exception(10), MemoryError)
    assert isinstance(batcher.put(1).exception(10), ValueError)
    assert batcher.put(2).result(10) == 2
    batcher.close()


def test_a_cancelled_image_does_not_stop_its_batch():
    gate = threading.Event()

    def run(images: list[int]) -> list[int]:
        gate.wait(10)
        return images

    batcher, _ = make(run)
    first, second = batcher.put(1), batcher.put(2)
    assert first.cancel()
    gate.set()
    assert second.result(10) == 2
    assert batcher.put(3).result(10) == 3
    batcher.close()


def test_a_closed_queue_finishes_running_batches_and_fails_the_rest():
    gate = threading.Event()

    def run(images: list[int]) -> list[int]:
        gate.wait(10)
        return images

    batcher, seen = make(run, sizes=(1,), max_wait=0.0)
    futures = [batcher.put(number) for number in range(3)]
    while len(seen) < 2:
        time.sleep(0.01)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    assert isinstance(futures[2].exception(10), RuntimeError)
    gate.set()
    closing.join()
    assert [futures[0].result(10), futures[1].result(10)] == [0, 1]
    assert isinstance(batcher.put(4).exception(10), RuntimeError)


def run_all(*requests: list[int], **options) -> list[list[int]]:
    """The batches of requests that wait together; images are their numbers of pixels."""
    gate, started, batches = threading.Event(), threading.Event(), []

    def run(images: list[int]) -> list[int]:
        batches.append(images)
        started.set()
        gate.wait(10)
        return images

    batcher, _ = make(run, num_workers=1, **options)
    first = batcher.put(0)
    assert started.wait(10)
    futures = [
        future for images in requests for future in batcher.submit(images, num_pixels=images)
    ]
    gate.set()
    assert [future.result(10) for future in futures] == [x for images in requests for x in images]
    assert first.result(10) == 0
    batcher.close()
    return batches[1:]


def test_requests_with_few_pixels_do_not_wait_for_all_of_a_larger_one():
    batches = run_all([30, 30, 30], [31], [10, 11], sizes=(1,))
    assert batches == [[10], [11], [30], [31], [30], [30]]


def test_a_large_request_gets_its_turn_among_many_small_ones():
    batches = run_all([50, 50], *[[40]] * 9, [1], sizes=(1,))
    assert batches.index([50]) <= 10
    assert batches[-1] == [50]


def test_a_batch_has_few_pixels_or_one_image():
    batches = run_all([10] * 5 + [99], [500], max_pixels=30)
    assert batches == [[10] * 3, [10] * 2, [99], [500]]


def test_cancelled_images_are_not_run():
    gate, started = threading.Event(), threading.Event()

    def run(images: list[int]) -> list[int]:
        started.set()
        gate.wait(10)
        return images

    batcher, seen = make(run, num_workers=1)
    first = batcher.put(0)
    assert started.wait(10)
    futures = batcher.submit([1, 2, 3], num_pixels=[1, 1, 1])
    assert all(future.cancel() for future in futures)
    gate.set()
    assert first.result(10) == 0
    assert batcher.put(4).result(10) == 4
    assert sum(seen) == 2
    batcher.close()


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(1, (1,)), (2, (1, 2)), (5, (1, 2, 3, 4, 5)), (32, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))],
)
def test_sizes_are_few_and_end_with_the_largest(largest, sizes):
    assert batch_sizes(largest) == sizes
