"""Extraction by many workers: the store filled with what a training's phases will read.

This process reads the pictures, plans the units and holds the entries' locks. A worker gets a
unit with the names of the pixels' files and writes its shards into the same folder.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from keras_transfer.data.sources import read_records
from keras_transfer.devices import Devices, set_up
from keras_transfer.errors import SpecError
from keras_transfer.experiments.descriptions import describe_model
from keras_transfer.experiments.run import load_data
from keras_transfer.experiments.session import open_store, settle
from keras_transfer.features import extraction
from keras_transfer.features.chunks import Unit, Workshop
from keras_transfer.features.extraction import Tally
from keras_transfer.features.phase_inputs import Supply
from keras_transfer.reporting.reporter import Narrator
from keras_transfer.scale.cluster import joined
from keras_transfer.scale.environment import Surroundings
from keras_transfer.scale.worker_pool import Crew
from keras_transfer.scale.workers import Extractor
from keras_transfer.specs import RunSpec
from keras_transfer.training.fitting import prepare_classifier


def fill_store(spec: RunSpec, *, num_workers: int | None, narrator: Narrator) -> list[Tally]:
    """Store the features of all phases whose cuts are known before any training.

    A training with the same spec then computes none of them.

    Args:
        num_workers: processes of a Ray cluster; None computes in this one.

    Returns:
        What was done; nothing where all phases train on pictures, which is told.

    Raises:
        DataError, SpecError, WeightsError: the input cannot be used as it is.
        RunError: features cannot be stored, or the workers failed.
    """
    _check(spec)
    devices = set_up(spec.devices, seed=spec.seed)
    if num_workers:
        _check_devices(devices)
    records = read_records(spec.data)
    classifier = prepare_classifier(spec, records.class_names)
    narrator.say(describe_model(spec, classifier))
    settled = settle(spec, len(records.items), narrator=narrator)
    if settled.cache.mode == "off":
        return []
    crew: extraction.Crew = extraction.alone
    if num_workers:
        crew = _Workers(settled, records.class_names, num_workers, narrator)
    with open_store(settled, narrator=narrator) as store:
        data = load_data(settled, records, store=store, narrator=narrator)
        supply = Supply(
            settled, data.source, data.splits, store=store, narrator=narrator, crew=crew
        )
        supply.for_phase(classifier, 0)
    return supply.tallies


def _check(spec: RunSpec) -> None:
    if spec.cache.mode == "off":
        raise SpecError(
            "cache.mode=off stores nothing that could be extracted",
            expected="auto or on",
            received="off",
            fix="set cache.mode=auto",
        )
    if spec.num_trials > 1:
        raise SpecError(
            "a study's trainings draw splits of their own",
            expected="folds=1, seeds=1 and halvings=0",
            received=f"folds={spec.folds}, seeds={spec.seeds}, halvings={spec.halvings}",
            fix="leave them out: a study's first trial stores the features of all",
        )


def _check_devices(devices: Devices) -> None:
    if devices.kind != "cpu" or devices.num_hosts > 1:
        hosts = f", {devices.num_hosts} hosts" if devices.num_hosts > 1 else ""
        raise SpecError(
            "--workers compute on processors, and so has the process that plans",
            expected="devices.strategy=cpu, and a process that is no host among many",
            received=f"{devices.kind}{hosts}",
            fix="leave --workers out, or set devices.strategy=cpu",
        )


class _Workers:
    """A crew of Ray workers, each of which builds the spec's classifier; see `extraction.Crew`."""

    def __init__(
        self, spec: RunSpec, class_names: Sequence[str], num_workers: int, narrator: Narrator
    ):
        self._spec, self._class_names = spec, tuple(class_names)
        self._num_workers, self._narrator = num_workers, narrator

    def __call__(
        self, units: Iterable[Unit], workshop: Workshop, on_views: Callable[[int], None]
    ) -> Iterator[Unit]:
        units = iter(units)
        first = next(units, None)
        if first is None:  # Nothing is missing: no cluster is started for that.
            return
        source = workshop.source

        def send(worker: Any, unit: Unit) -> Any:
            own, rows = unit.alone()
            return worker.compute.remote(own, source.part(rows))

        with joined(self._num_workers, narrator=self._narrator) as share:
            import ray

            surroundings = Surroundings.here(share.num_threads)
            arguments = (self._spec, self._class_names, surroundings)
            crew = Crew(
                start=lambda options: ray.remote(Extractor).options(**options).remote(*arguments),
                send=send,
                name=_name,
                share=share,
                narrator=self._narrator,
            )
            for _, unit, _ in crew.work(itertools.chain([first], units), self._num_workers):
                on_views(len(unit))
                yield unit


def _name(unit: Unit) -> str:
    numbers = [f"{unit.recipes[t.output].id}/shard-{t.number}" for t in unit.targets]
    return " and ".join(numbers)
