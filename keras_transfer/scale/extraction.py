"""Feature extraction with workers: computes and stores the features for the phases of a training.

This process reads the images, plans the chunks and has the locks of the cache's entries. A worker
gets a chunk with the files of its decoded images, and writes its shards into the same folder.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from keras_transfer.config import check_single_training
from keras_transfer.devices import Devices
from keras_transfer.errors import SpecError
from keras_transfer.experiments.session import open_session
from keras_transfer.features import extraction
from keras_transfer.features.chunks import Chunk, FeatureWriter
from keras_transfer.features.extraction import ExtractionStats
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.scale.cluster import joined
from keras_transfer.scale.environment import Environment
from keras_transfer.scale.worker_pool import RayWorkerPool
from keras_transfer.scale.workers import Extractor
from keras_transfer.specs import RunSpec
from keras_transfer.storage.atomic import discard_partials
from keras_transfer.tasks.task import Task


def store_features(
    spec: RunSpec, *, num_workers: int | None, reporter: Reporter
) -> list[ExtractionStats]:
    """Store the features of all phases whose cuts are known before training.

    A training with the same spec then reads them.

    Args:
        num_workers: processes of a Ray cluster; None computes in this process.

    Returns:
        the computed features; nothing, with a message, if all phases train on images.

    Raises:
        DataError, SpecError, WeightsError: the input is not valid.
        RunError: features cannot be stored, or the workers failed.
    """
    _check(spec)
    with open_session(spec, reporter=reporter) as session:
        if num_workers:
            _check_devices(session.devices)
        classifier = session.build_classifier()
        if session.spec.cache.mode == "off":
            return []
        worker_pool: extraction.WorkerPool = extraction.this_process
        if num_workers:
            worker_pool = _Workers(session.spec, session.task, num_workers, reporter)
        phase_inputs = session.phase_inputs(worker_pool=worker_pool)
        phase_inputs.for_phase(classifier, 0)
    return phase_inputs.extraction_stats


def _check(spec: RunSpec) -> None:
    if spec.cache.mode == "off":
        raise SpecError(
            "features cannot be stored with cache.mode=off",
            expected="auto or on",
            received="off",
            fix="set cache.mode=auto",
        )
    check_single_training(
        spec,
        "the trainings of a study have different splits",
        fix="leave them out: the first trial of a study stores the features for all",
    )


def _check_devices(devices: Devices) -> None:
    if devices.kind != "cpu" or devices.num_hosts > 1:
        hosts = f", {devices.num_hosts} hosts" if devices.num_hosts > 1 else ""
        raise SpecError(
            "--workers compute on CPUs, and the main process must do so, too",
            expected="devices.strategy=cpu, and a single host",
            received=f"{devices.kind}{hosts}",
            fix="leave --workers out, or set devices.strategy=cpu",
        )


class _Workers:
    """Ray workers that each build the spec's classifier; an `extraction.WorkerPool`."""

    def __init__(self, spec: RunSpec, task: Task, num_workers: int, reporter: Reporter):
        self._spec, self._task = spec, task
        self._num_workers, self._reporter = num_workers, reporter

    def __call__(
        self,
        chunks: Iterable[Chunk],
        feature_writer: FeatureWriter,
        on_views: Callable[[int], None],
    ) -> Iterator[Chunk]:
        chunks = iter(chunks)
        first = next(chunks, None)
        if first is None:  # Nothing is missing, so no cluster is started.
            return
        source = feature_writer.source
        folders: set[Path] = set()

        def send(worker: Any, chunk: Chunk) -> Any:
            own, rows = chunk.alone()
            return worker.compute.remote(own, source.part(rows))

        with joined(self._num_workers, reporter=self._reporter) as share:
            import ray

            environment = Environment.here(share.num_threads)
            arguments = (self._spec, self._task, environment)
            worker_pool = RayWorkerPool(
                start=lambda options: ray.remote(Extractor).options(**options).remote(*arguments),
                send=send,
                name=_name,
                share=share,
                reporter=self._reporter,
            )
            for _, chunk, _ in worker_pool.work(
                itertools.chain([first], chunks), self._num_workers
            ):
                folders.update(chunk.folder / each.id for each in chunk.cache_keys)
                on_views(len(chunk))
                yield chunk
        # A worker that was killed while it wrote leaves a partial file under a name of its own.
        for folder in sorted(folders):
            discard_partials(folder)


def _name(chunk: Chunk) -> str:
    numbers = [f"{chunk.cache_keys[t.output].id}/shard-{t.number}" for t in chunk.targets]
    return " and ".join(numbers)
