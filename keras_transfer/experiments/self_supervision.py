"""Self-supervised pretraining: a trunk learns from images without labels, before any training.

    images.json        digests of the images that were trained on, that measure it, and the others
    history.csv        one row per epoch
    model.keras        from pixels to the trunk's pooled features
    pretraining.json   the kind, its figures and how it was trained; written last

The folder also has spec.json, so that `model.backbone` takes it like an earlier run.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.data.audit import Audited
from keras_transfer.data.datasets import Examples
from keras_transfer.data.records import counted
from keras_transfer.data.targets import Targets
from keras_transfer.data.unlabelled import keep_unseen, list_unlabelled
from keras_transfer.errors import DataError, SpecError
from keras_transfer.experiments.session import open_session
from keras_transfer.models.classifier import Classifier, save_model
from keras_transfer.pretext.kind import Kind, Measured, Pretext, UnlabelledImages
from keras_transfer.pretext.registry import make_kind
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec
from keras_transfer.storage.checksums import sha256_of, write_checksums
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import vacated_on_refusal
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.phases import PhaseResult, is_batchnorm, train_phase
from keras_transfer.training.progress import Checkpoint

IMAGES_FILE: Final = "images.json"
_TASK: Final = SingleLabel(("image",))
"""Stands for the task, which images without labels do not have."""
_MOST_NAMED: Final = 5


@dataclass(frozen=True, eq=False)
class Division:
    """Rows of images: trained on, measured on, and neither; each image is in one of them once."""

    train: np.ndarray
    val: np.ndarray
    unseen: np.ndarray

    def to_dict(self, digests: Sequence[str]) -> dict[str, list[str]]:
        """The content of images.json."""
        groups = {"trained": self.train, "measured": self.val, "unseen": self.unseen}
        return {name: sorted(digests[row] for row in rows) for name, rows in groups.items()}


def run_pretraining(spec: RunSpec, run: RunFolder, *, reporter: Reporter) -> Measured:
    """Train the trunk of a spec on the images below its `data.path`, by the kind of its phase.

    Args:
        spec: with one phase, which is called like its pretext task; of labels nothing is read.
        run: of the same spec, new or to be resumed.

    Raises:
        SpecError: the kind is unknown, or other fields contradict it.
        DataError: there are no images or too few, or they have changed since the run was started.
        WeightsError: the weights are missing or do not fit.
        RunError: the folder cannot be written, or training diverged.
    """
    with vacated_on_refusal(run):
        kind = make_kind(spec.phases[0].name)
        _check(spec, kind)
        known = Targets.of_classes([0], _TASK.names)
        listed = list_unlabelled(spec.data.path, known, where="data.path")
        with open_session(spec, reporter=reporter, run=run, task=_TASK, records=listed) as session:
            read = session.read_images()
            division = _divide(read, spec, reporter)
            _keep_division(run, division.to_dict([one.digest for one in read.records.items]))
            images = _images(read, division)
            pretext = kind.prepare(images, session.spec)
            reporter.info(describe_trained(pretext.classifier, spec.phases[0]))
            result = _train(pretext, spec, run, reporter)
            measured = kind.measure(pretext, images, result)
            reporter.info(measured.sentence)
            _write(run, spec, pretext, division, result, measured)
    return measured


def _check(spec: RunSpec, kind: Kind) -> None:
    """Raise SpecError for a spec that is none of a pretraining."""
    phase = spec.phases[0]
    if len(spec.phases) > 1 or phase.method != "supervised" or phase.unfreeze == HEAD:
        raise SpecError(
            "a pretraining has one phase, which trains stages of the backbone",
            expected="fields of phases.0 only, without a method, and an unfreeze such as last",
            received=f"{counted(len(spec.phases), 'phase', 'phases')}, the first of method "
            f"{phase.method!r} with unfreeze={phase.unfreeze}",
            fix="leave phases.0.method out, and set phases.0.unfreeze",
        )
    kind.check(spec)


def _divide(read: Audited, spec: RunSpec, reporter: Reporter) -> Division:
    """Shares of the distinct images by the seed, whatever their names are.

    Raises:
        DataError: there are too few for a batch.
    """
    records = read.records
    if records.bad_files:
        named = [f"{bad.path} ({bad.reason})" for bad in records.bad_files[:_MOST_NAMED]]
        words = counted(len(records.bad_files), "unreadable file is", "unreadable files are")
        reporter.info(f"{words} left out, such as {'; '.join(named)}.")
    kept, _ = keep_unseen(records, ())
    place = {record.digest: row for row, record in reversed([*enumerate(records.items)])}
    rows = np.array([place[digest] for digest in sorted(one.digest for one in kept)], np.int64)
    rows = rows[np.random.default_rng(spec.seed).permutation(len(rows))]
    num_unseen, num_val = (
        round(share * len(rows)) for share in (spec.data.test_fraction, spec.data.val_fraction)
    )
    parts = np.split(rows, [num_unseen, num_unseen + num_val])
    unseen, val, train = (np.sort(part) for part in parts)
    if len(train) < spec.training.batch_size or not len(val):
        raise DataError(
            f"there are too few images to pretrain on: {spec.data.path}",
            expected=f"{spec.training.batch_size} or more to train on, one batch, and some of the "
            "others to measure it",
            received=f"{len(rows)} readable images, of which {len(train)} would be trained on and "
            f"{len(val)} measure it",
            fix="give a folder with more images; labels are not needed",
        )
    reporter.info(
        f"{len(rows):,} distinct images: {len(train):,} are trained on, {len(val):,} measure it, "
        f"and {len(unseen):,} are not used (data.test_fraction), for a fair comparison later."
    )
    return Division(train, val, unseen)


def _keep_division(run: RunFolder, content: dict[str, list[str]]) -> None:
    """Write images.json, or raise DataError if it has other images."""
    if not (run.path / IMAGES_FILE).is_file():
        run.write_json(IMAGES_FILE, content)
    elif (before := run.read_json(IMAGES_FILE)) != content:
        raise DataError(
            "the images have changed since the pretraining was started",
            expected=f"the {sum(map(len, before.values())):,} whose digests are in {IMAGES_FILE}",
            received=f"{sum(map(len, content.values())):,} distinct images",
            fix="restore the folder, or start a new pretraining without --resume",
        )


def _images(read: Audited, division: Division) -> UnlabelledImages:
    ids = np.asarray([record.example_id for record in read.records.items], np.int64)
    examples = Examples(pixels=read.pixels, targets=read.records.targets, example_ids=ids)
    return UnlabelledImages(examples, division.train, division.val)


def describe_trained(classifier: Classifier, phase: PhaseSpec) -> str:
    """Which stages of the trunk train, and what happens to BatchNormalization there."""
    stages = classifier.from_stage(phase.unfreeze)[:-1]
    norms = [x for name in stages for x in classifier.stages[name] if is_batchnorm(x)]
    if not norms:
        text = "they have no BatchNormalization"
    elif phase.train_batchnorm:
        text = f"their {len(norms)} BatchNormalization layers train and update their statistics"
    else:
        text = f"their {len(norms)} BatchNormalization layers stay as they are"
    return f"Stages that train: {', '.join(stages)}; {text} (phases.0.train_batchnorm)."


def _train(pretext: Pretext, spec: RunSpec, run: RunFolder, reporter: Reporter) -> PhaseResult:
    phase = spec.phases[0]
    steps = pretext.data.steps_per_epoch
    with reporter.training_progress(phase.name, phase.epochs, steps) as callbacks:
        return train_phase(
            pretext.classifier,
            phase,
            pretext.data,
            part=pretext.model,
            loss=pretext.loss,
            saver=Checkpoint(run, "phase-0", reporter.info),
            callbacks=callbacks,
            say=reporter.info,
        )


def _write(
    run: RunFolder,
    spec: RunSpec,
    pretext: Pretext,
    division: Division,
    result: PhaseResult,
    measured: Measured,
) -> None:
    columns = list(result.history[0])
    rows = ([number, *map(row.get, columns)] for number, row in enumerate(result.history, start=1))
    run.write_rows("history.csv", ["epoch", *columns], rows)
    model = pretext.classifier.model
    trunk = keras.Model(model.input, model.get_layer("pooling").output, name="pretrained")
    with run.replacing("model.keras") as path:
        save_model(trunk, path)
    write_checksums(run.path, [run.model_file.name])
    run.write_json(
        run.pretraining_file.name, _report(run, spec, pretext, division, result, measured)
    )
    shutil.rmtree(run.checkpoint_folder)


def _report(
    run: RunFolder,
    spec: RunSpec,
    pretext: Pretext,
    division: Division,
    result: PhaseResult,
    measured: Measured,
) -> dict[str, Any]:
    phase = spec.phases[0]
    return {
        "kind": phase.name,
        "figures": dict(measured.figures),
        "sentence": measured.sentence,
        "trained": describe_trained(pretext.classifier, phase),
        "num_trained": len(division.train),
        "num_measured": len(division.val),
        "num_unseen": len(division.unseen),
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "seconds": result.seconds,
        "keras": keras.__version__,
        "model_sha256": sha256_of(run.model_file),
    }
