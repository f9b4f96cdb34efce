"""Session: devices, records, cache and images of an experiment, opened once.

    with open_session(spec, reporter=reporter, run=run) as session:
        classifier = session.build_classifier()  # missing weights are an error here
        session.data                             # images are read when they are first used
        phase_inputs = session.phase_inputs()

`load_dataset` and `build_model` give the same images and models as plain `tf.data` and Keras
objects.
"""

import atexit
import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.config import make_spec, override
from keras_transfer.data.audit import Audited, audit, cached_pixels, pixels_key
from keras_transfer.data.datasets import Examples
from keras_transfer.data.listed_images import find_listed
from keras_transfer.data.plain import make_plain
from keras_transfer.data.records import Record, Records
from keras_transfer.data.splits import (
    NAMES,
    Splits,
    check_splits,
    make_splits,
    manifest,
    read_manifest,
)
from keras_transfer.data.targets import Targets
from keras_transfer.data.unlabelled import (
    check_same_unlabelled,
    keep_unseen,
    list_digests,
    list_unlabelled,
    placeholders,
)
from keras_transfer.devices import Devices, set_up
from keras_transfer.errors import DataError, SpecError
from keras_transfer.experiments.summary import describe_data, describe_model
from keras_transfer.features.extraction import WorkerPool, this_process
from keras_transfer.features.phase_inputs import PhaseInputs, SplitData
from keras_transfer.features.source import Source
from keras_transfer.methods.method import Method
from keras_transfer.methods.networks import prepare_classifier
from keras_transfer.methods.registry import make_methods
from keras_transfer.models.classifier import Classifier, build_classifier
from keras_transfer.reporting.reporter import Reporter, TerminalReporter
from keras_transfer.specs import DataSpec, RunSpec
from keras_transfer.storage.cache import Cache, open_cache
from keras_transfer.storage.model_files import resolve
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.shards import Rows
from keras_transfer.tasks.registry import make_task, read_task, restore_task
from keras_transfer.tasks.task import Task

_PIXELS_SHARE: Final = 0.5
"""Largest share of the cache that decoded images may use: features need space as well."""


@dataclass(frozen=True, eq=False)
class Data:
    """All readable images of a source: records, rows of each split, decoded images.

    `num_decoded` counts the images that were not in the cache. Rows from `len(records.items)` on
    are images without labels (`data.unlabelled`), which `unlabelled_items` lists.
    """

    records: Records
    splits: Splits
    source: Source
    num_decoded: int
    unlabelled_items: tuple[Record, ...] = ()

    @property
    def unlabelled(self) -> np.ndarray:
        """Rows of the images without labels, int64 [U]."""
        return np.arange(len(self.records.items), len(self.source.digests))

    @property
    def counts(self) -> dict[str, int]:
        """Number of images by split."""
        return {name: len(getattr(self.splits, name)) for name in NAMES}

    @property
    def examples(self) -> Examples:
        """Decoded images, targets and ids, row by row."""
        return self.source.examples


@dataclass(frozen=True, eq=False)
class Session:
    """The objects that one experiment uses; see `open_session`.

    `spec` is the given one, with a model file or run as backbone resolved (`model_files.resolve`),
    and with `cache.mode=off` where 'auto' found too little space. `records`
    are all that the source lists, `data.records` those that could be read. `run` is the folder of
    the results, None where nothing is written. `listed_splits` are those in its splits.json when
    the session was opened, and `records` then the images there. `methods` has one per phase.
    """

    spec: RunSpec
    devices: Devices
    methods: tuple[Method, ...]
    task: Task
    records: Records
    cache: Cache
    reporter: Reporter
    run: RunFolder | None = None
    listed_splits: Splits | None = None

    @cached_property
    def data(self) -> Data:
        """The images, read, checked and split when they are first used.

        Raises:
            DataError: the images or their splits cannot be used.
            RunError: the decoded images cannot be stored.
        """
        if not self.listed_splits:
            check_splits(self.records, self.spec.data)
        records, pixels, num_decoded = self.read_images()
        splits = self.listed_splits or make_splits(records, self.spec.data, seed=self.spec.seed)
        for sentence in describe_data(self.spec, records, splits):
            self.reporter.info(sentence)
        if not self.spec.data.unlabelled:
            source = self._make_source(records.items, pixels, records.targets)
            return Data(records, splits, source, num_decoded)
        evaluated = {records.items[row].digest for row in (*splits.val, *splits.test)}
        more, num_more = self._read_unlabelled(records.targets, evaluated)
        items = (*records.items, *more)
        targets = records.targets.joined(placeholders(records.targets, len(more)))
        with self.cache.opened(pixels_key(self.spec.data)) as (entry,):
            pixels = cached_pixels(items, entry)
        source = self._make_source(items, pixels, targets)
        return Data(records, splits, source, num_decoded + num_more, more)

    def _make_source(
        self,
        items: Sequence[Record],
        pixels: Rows,
        targets: Targets,
        *,
        spec: DataSpec | None = None,
    ) -> Source:
        ids = np.asarray([record.example_id for record in items], np.int64)
        examples = Examples(pixels=pixels, targets=targets, example_ids=ids)
        digests = [record.digest for record in items]
        return Source(examples, digests, self.spec.views, pixels_key(spec or self.spec.data))

    def _read_unlabelled(
        self, targets: Targets, evaluated: Collection[str]
    ) -> tuple[tuple[Record, ...], int]:
        """Images without labels that are in no evaluated split, and how many had to be decoded."""
        data = dataclasses.replace(self.spec.data, on_bad_file="skip")
        listed = list_unlabelled(data.unlabelled, targets)
        read = audit(listed, data, cache=self.cache, reporter=self.reporter)
        kept, sentence = keep_unseen(read.records, evaluated)
        self.reporter.info(sentence)
        if not kept:
            raise DataError(
                "no image without a label is left to train on",
                expected="readable images that are not in the validation or test split",
                received=f"only others below {data.unlabelled}",
                fix="give other images in data.unlabelled, or leave it out",
            )
        if self.listed_splits and self.run:
            check_same_unlabelled(kept, self.run.read_json("splits.json"))
        return kept, read.num_decoded

    def source_of(self, image_size: int) -> Source:
        """The images of `data` in another size, for a network that reads this size.

        Raises:
            DataError: an image cannot be read any more.
            RunError: the decoded images cannot be stored.
        """
        if image_size == self.spec.data.image_size:
            return self.data.source
        if image_size not in self._sources:
            own = dataclasses.replace(self.spec.data, image_size=image_size, on_bad_file="error")
            data = self.data
            items, targets = (*data.records.items, *data.unlabelled_items), data.examples.targets
            every = Records(items, targets, data.records.root)
            pixels = audit(every, own, cache=self.cache, reporter=self.reporter).pixels
            self._sources[image_size] = self._make_source(items, pixels, targets, spec=own)
        return self._sources[image_size]

    @cached_property
    def _sources(self) -> dict[int, Source]:
        """Images in other sizes, kept because every trial of a study asks for them."""
        return {}

    def read_images(self) -> Audited:
        """Open and check every file; decode those that the cache does not have.

        Raises:
            DataError: files cannot be read and `data.on_bad_file=error`, or a class has none left.
            RunError: the decoded images cannot be stored.
        """
        data = self.spec.data
        if self.listed_splits:  # They were readable, and rows are counted without bad files.
            data = dataclasses.replace(data, on_bad_file="error")
        return audit(self.records, data, cache=self.cache, reporter=self.reporter)

    def build_classifier(self) -> Classifier:
        """The spec's classifier before any training.

        Raises:
            SpecError: an unknown backbone or stage, or images that are too small for it.
            WeightsError: the weights are missing or do not fit.
        """
        classifier = prepare_classifier(self.spec, self.task)
        self.reporter.info(describe_model(self.spec, classifier))
        return classifier

    def phase_inputs(self, *, worker_pool: WorkerPool = this_process) -> PhaseInputs:
        """The inputs of the spec's phases; `worker_pool` computes features not in the cache."""
        data = self.data
        return PhaseInputs(
            self.spec,
            data.source,
            data.splits,
            methods=self.methods,
            cache=self.cache,
            reporter=self.reporter,
            unlabelled=data.unlabelled,
            source_of=self.source_of,
            worker_pool=worker_pool,
        )

    def write_splits(self) -> None:
        """Write splits.json and class_names.json into the run folder."""
        assert self.run
        content = manifest(self.data.splits, self.data.records)
        self.run.write_json("splits.json", content | list_digests(self.data.unlabelled_items))
        self.run.write_class_names(self.data.records.class_names)


@contextlib.contextmanager
def open_session(
    spec: RunSpec,
    *,
    reporter: Reporter,
    run: RunFolder | None = None,
    devices: Devices | None = None,
    task: Task | None = None,
    records: Records | None = None,
) -> Iterator[Session]:
    """Set up the devices, list the images and open the cache, which is closed with the block.

    Args:
        run: folder of the results, also for temporary files; None uses the system's folder.
        devices: devices that are already set up; by default those of the spec are set up.
        task, records: the task and its images; by default those in splits.json of `run`, and
            all images of the source for a run without this file.

    Raises:
        SpecError: the devices do not exist or cannot share a batch equally, or a task, a method
            or an option is unknown.
        DataError: the source cannot be listed, or images of splits.json are not there.
    """
    spec = resolve(spec)
    methods = make_methods(spec)
    if devices is None:
        devices = set_up(spec.devices, seed=spec.seed)
        devices.check_batch_size(spec.training.batch_size, spec.devices.batch_size)
        reporter.info(devices.describe(spec.training.batch_size))
    listed_splits = None
    if run and (run.path / "splits.json").is_file():
        task, records, listed_splits = _read_listed(spec, run, reporter)
    elif task is None or records is None:
        task, records = read_task(spec)
    spec = _resolve_cache_mode(spec, len(records.items), reporter)
    if run:
        run.checkpoint_folder.mkdir(exist_ok=True)
    scratch = run.checkpoint_folder if run else None
    with open_cache(spec, reporter=reporter, scratch=scratch) as cache:
        yield Session(spec, devices, methods, task, records, cache, reporter, run, listed_splits)


def _read_listed(spec: RunSpec, run: RunFolder, reporter: Reporter) -> tuple[Task, Records, Splits]:
    """The images in the run's splits.json; the source is not listed again."""
    listed, splits = read_manifest(run.read_json("splits.json"))
    items, root = find_listed(listed, spec.data, reporter=reporter)
    task = make_task(spec, items)
    return task, Records(items, task.targets(items), root), splits


def _resolve_cache_mode(spec: RunSpec, num_images: int, reporter: Reporter) -> RunSpec:
    """The spec, with an 'auto' cache switched off if its limit is too low for the images."""
    num_bytes = num_images * pixels_key(spec.data).row_bytes
    if spec.cache.mode != "auto" or num_bytes <= _PIXELS_SHARE * spec.cache.limit_gb * 1e9:
        return spec
    reporter.info(
        f"The cache is not used: the decoded images alone take {num_bytes / 1e9:.2g} GB of its "
        f"{spec.cache.limit_gb:g} GB (cache.limit_gb). Frozen layers run again in every epoch."
    )
    return override(spec, {"cache.mode": "off"})


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of a source in the form that Keras's `fit` and `evaluate` take.

    `train`, `val` and `test` are `tf.data.Dataset`s of batches: images float32 [B, S, S, C] in
    0-255, targets float32 [B, K] (one-hot labels), sample weights float32 [B], which are 1 unless
    `training.class_weights` is set.
    """

    train: Any
    """Every pass is a new epoch: another order, and the next view of each image. Call
    `fit(dataset.train, shuffle=False)`, or Keras warns that it does not shuffle."""
    val: Any
    """Plain images in a fixed order."""
    test: Any
    """As `val`."""
    class_names: tuple[str, ...]
    """Names of the K outputs, in order."""
    data: Data
    """Records of all images, rows of each split, decoded pixels."""

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Plain images uint8 [N, S, S, C] of 'train', 'val' or 'test', and targets [N, K]."""
        rows, examples = getattr(self.data.splits, split), self.data.examples
        return np.asarray(examples.pixels[rows]), examples.targets.values[rows]


def load_dataset(
    source: RunSpec | str | Path, *, reporter: Reporter | None = None, **fields: Any
) -> Dataset:
    """Read, check and split the images of a source, as a run of the same spec does.

    Args:
        source: a folder with a sub-folder for each class, a CSV file, a spec, or its file.
        reporter: shows decisions and progress; by default on the terminal.
        fields: fields of the spec, as of `fine_tune`.

    Raises:
        SpecError: a field is unknown, has the wrong type or is out of range.
        DataError: the images cannot be used.
    """
    spec = make_spec(source, **fields)
    with contextlib.ExitStack() as held:
        session = held.enter_context(open_session(spec, reporter=reporter or TerminalReporter()))
        data = session.data
        # With cache.mode=off decoded images are in a temporary folder, which is still needed.
        atexit.register(held.pop_all().close)
    splits = data.splits
    training = SplitData.of_images(session.spec, session.task, data.examples, splits)
    testing = SplitData.of_images(
        session.spec, session.task, data.examples, dataclasses.replace(splits, val=splits.test)
    )
    return Dataset(
        train=make_plain(lambda epoch: training.training(range(epoch, epoch + 1))),
        val=make_plain(lambda _: training.validation()),
        test=make_plain(lambda _: testing.validation()),
        class_names=data.records.class_names,
        data=data,
    )


def build_model(
    source: RunSpec | str,
    *,
    class_names: Sequence[str] = (),
    num_classes: int | None = None,
    **fields: Any,
) -> keras.Model:
    """A pretrained backbone with a new head: images [B, S, S, C] in 0-255 to logits [B, K].

    Preprocessing is part of the model. All layers are trainable, and nothing is compiled.

    Args:
        source: a backbone's name or path, or a spec whose `model` and sizes of images are used.
        class_names: names of the logits, in order.
        num_classes: the number of classes, where their names do not matter.
        fields: fields of the spec, as of `fine_tune`.

    Raises:
        SpecError: unknown backbone or stage, too small images, or neither names nor number.
        WeightsError: the weights are missing or do not fit.
    """
    if isinstance(source, str):
        spec, fields = RunSpec(), {"backbone": source, **fields}
    else:
        spec = source
    spec = make_spec(spec, **fields)
    names = tuple(class_names) or tuple(f"class_{number}" for number in range(num_classes or 0))
    fewest = 2 if spec.task == "single_label" else 1
    if len(names) < fewest or num_classes not in (None, len(names)):
        raise SpecError(
            "the classes of the model are not clear",
            expected="class_names or num_classes; of single labels two classes or more",
            received=f"class_names={list(class_names)}, num_classes={num_classes}",
            fix="give class_names=dataset.class_names, or num_classes alone",
        )
    task = restore_task({"task": spec.task, "options": spec.task_options, "state": {}}, names)
    size, channels = spec.data.image_size, spec.data.channels
    return build_classifier(
        spec.model, image_size=size, channels=channels, task=task, seed=spec.seed
    ).model
