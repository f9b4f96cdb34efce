"""Dry run: build everything, train every phase on one batch, write nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from keras_transfer.data.datasets import Batching, Examples, Views, training_dataset
from keras_transfer.data.images import decoding_of
from keras_transfer.data.reading import read_pixels
from keras_transfer.data.records import BadFile, Records
from keras_transfer.devices.hosts import check_one_host
from keras_transfer.errors import DataError
from keras_transfer.experiments.session import Session, open_session
from keras_transfer.models.classifier import Classifier
from keras_transfer.models.cuts import Cut
from keras_transfer.reporting.reporter import TerminalReporter
from keras_transfer.specs import RunSpec
from keras_transfer.training.objective import PhaseContext
from keras_transfer.training.optimizers import stage_rates
from keras_transfer.training.phases import apply_phase, compile_phase


def dry_run(spec: RunSpec, terminal: TerminalReporter) -> None:
    """Read one batch of images, train every phase on it once, and print what would happen.

    Raises:
        DataError, SpecError, WeightsError: as the run itself would.
    """
    check_one_host(spec.devices, "a dry run")
    with open_session(spec, reporter=terminal) as session:
        records = session.records
        terminal.info(f"{len(records.items):,} files of {len(records.class_names)} classes.")
        absent = [r.path for n, r in enumerate(records.items) if not records.file(n).is_file()]
        if absent:
            terminal.info(f"{len(absent):,} of the files do not exist, such as {absent[0]}.")
        for note in records.notes:
            terminal.info(note)
        classifier = session.build_classifier()
        _show_stages(classifier, terminal)
        batch = _one_batch(spec, records)
        rows = list(_try_phases(session, classifier, batch))
    header = ["phase", "stages that train", "parameters", "learning rate", "epochs", "loss"]
    caption = (
        "parameters: how many train; learning rate: the highest, of each stage; loss: mean over "
        f"one batch of {len(batch.pixels)} images, before it is trained on"
    )
    terminal.table("Phases", header, rows, caption=caption)
    terminal.info("Dry run: nothing was written.")


def _one_batch(spec: RunSpec, records: Records) -> Examples:
    """A batch of readable images spread over the whole source."""
    stride = max(1, len(records.items) // spec.training.batch_size)
    rows = range(0, len(records.items), stride)
    read = read_pixels((records.file(row) for row in rows), **decoding_of(spec.data))
    pairs = ((row, item) for row, item in zip(rows, read, strict=True))
    good = [(row, item) for row, item in pairs if not isinstance(item, BadFile)]
    good = list(islice(good, spec.training.batch_size))
    if not good:
        raise DataError(
            "no image of the batch can be read",
            expected=f"a readable image among {len(rows)}",
            received="unreadable files only",
            fix="check the files below data.path",
        )
    return Examples(
        pixels=np.stack([item.pixels for _, item in good]),
        targets=records.targets.take(np.asarray([row for row, _ in good], np.int64)),
        example_ids=np.asarray([row for row, _ in good], np.int64),
    )


def _show_stages(classifier: Classifier, terminal: TerminalReporter) -> None:
    rows = []
    for stage, layers in classifier.stages.items():
        parameters = sum(layer.count_params() for layer in layers)
        shape = " × ".join(str(size) for size in layers[-1].output.shape[1:])
        rows.append([stage, str(len(layers)), f"{parameters:,}", shape])
    header = ["stage", "layers", "parameters", "output of one image"]
    terminal.table(f"Network: {classifier.trunk.backbone.name} and head", header, rows)


@dataclass(frozen=True, eq=False)
class _Zeros:
    """Zeros in place of activations that only a run computes."""

    shape: tuple[int, ...]
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.float32))

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return np.zeros((len(rows), *self.shape), np.float32)


@dataclass(frozen=True, eq=False)
class _OneBatch:
    """The batch as `PhaseImages` of a method; other networks do not run on it."""

    train_rows: np.ndarray
    train_values: np.ndarray
    num_views: int | None
    test_digests: tuple[str, ...] = ()

    @property
    def num_labelled(self) -> int:
        return len(self.train_rows)

    def read_frozen(self, cuts: Sequence[Cut], image_size: int) -> list[_Zeros]:  # noqa: ARG002
        return [_Zeros(cut.shape) for cut in cuts]


def _try_phases(
    session: Session, classifier: Classifier, examples: Examples
) -> Iterator[tuple[str, ...]]:
    spec = session.spec
    values = examples.targets.values
    images = _OneBatch(np.arange(len(values)), values, spec.views.count)
    stages = classifier.stages
    context = PhaseContext(spec, classifier.task, False, session.reporter, images, stages)
    num_devices = session.devices.num_devices
    for phase, method in zip(spec.phases, session.methods, strict=True):
        objective = method.prepare(context, phase, classifier.model)
        batch = training_dataset(
            examples,
            np.arange(len(examples.targets)),
            Views(examples, spec.views),
            encode=classifier.task.encode,
            num_views=spec.views.count,
            batching=Batching(size=spec.training.batch_size, num_devices=num_devices),
            seed=spec.seed,
            epochs=range(1),
            columns=objective.columns,
            transform=objective.batch_transform,
            partners=images.train_rows if objective.pairs else None,
        )
        num_trainable = apply_phase(classifier, phase, trains=objective.trains)
        model, loss = objective.model, objective.loss
        shares = objective.shares(model, batch) if objective.shares else None
        compile_phase(classifier, phase, part=model, steps_per_epoch=1, loss=loss, shares=shares)
        (value,) = model.fit(batch, shuffle=False, verbose=0).history["loss"]
        rates = stage_rates(phase, classifier, shares)
        unfrozen = "\n".join(rates)
        speed, epochs = "\n".join(f"{rate:.1e}" for rate in rates.values()), str(phase.epochs)
        if objective.solve and not objective.fits:
            speed, epochs = "solved", "–"
        if phase.min_images:
            epochs += f"\nwith {phase.min_images:,} or\nmore images"
        yield phase.name, unfrozen, f"{num_trainable:,}", speed, epochs, f"{value:.3f}"
