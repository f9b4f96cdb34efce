"""Batch prediction with workers: they get files in chunks; the rows have the order of the files.

Chunks are whole batches, so that every batch is the same as in a single process. Memory does not
grow with the number of files: chunks start only a few ahead of the oldest unfinished one.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from keras_transfer.inference.writers import Row
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.scale.cluster import joined
from keras_transfer.scale.environment import Environment
from keras_transfer.scale.worker_pool import RayWorkerPool
from keras_transfer.scale.workers import Predictor

_BATCHES_PER_CHUNK: Final = 8
_CHUNKS_AHEAD: Final = 4
"""Per worker: tasks for the other workers while one is restarted."""


def predict_with_workers(
    target: str,
    files: Iterable[Path],
    *,
    identity: str,
    known: Mapping[str, np.ndarray],
    batch_size: int,
    num_workers: int,
    reporter: Reporter,
) -> Iterator[Row]:
    """As `inference.prediction.predict_files`, with workers: the same rows in the same order.

    Args:
        target: a path that all machines can open; see `inference.targets`.
        identity: from `inference.targets.identify`; a worker with another target raises an error.

    Raises:
        RunError: Ray is not installed, the workers failed, or have another model.
    """
    files = iter(files)
    chunks = iter(lambda: list(itertools.islice(files, _BATCHES_PER_CHUNK * batch_size)), [])
    first = next(chunks, None)
    if first is None:
        return
    with joined(num_workers, reporter=reporter) as share:
        import ray

        # Sent once for all workers.
        shared = ray.put(dict(known))
        arguments = (target, identity, shared, batch_size, Environment.here(share.num_threads))
        worker_pool = RayWorkerPool(
            start=lambda options: ray.remote(Predictor).options(**options).remote(*arguments),
            send=lambda worker, chunk: worker.predict.remote(chunk),
            name=_name,
            share=share,
            reporter=reporter,
        )
        done: dict[int, list[Row]] = {}
        place = 0
        tasks = itertools.chain([first], chunks)
        ahead = _CHUNKS_AHEAD * num_workers
        for number, _, rows in worker_pool.work(tasks, num_workers, ahead=ahead):
            done[number] = rows
            while place in done:
                yield from done.pop(place)
                place += 1


def _name(chunk: list[Path]) -> str:
    return f"the files {chunk[0].as_posix()} to {chunk[-1].as_posix()}"
