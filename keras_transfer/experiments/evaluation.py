"""Evaluation and export of a finished run."""

import dataclasses
from pathlib import Path

import numpy as np
from filelock import FileLock

from keras_transfer.config import images_at, override
from keras_transfer.data.audit import pixels_key
from keras_transfer.data.records import Records
from keras_transfer.devices.strategy import current
from keras_transfer.errors import DataError
from keras_transfer.evaluation.results import Evaluation
from keras_transfer.experiments.session import open_session
from keras_transfer.experiments.summary import describe_images
from keras_transfer.export.bundle.deployment import deliver
from keras_transfer.export.card import make_card
from keras_transfer.export.saved_model.proof import Proof
from keras_transfer.features.cached_logits import predict_cached
from keras_transfer.inference.prediction import LoadedRun, load_run
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.storage.run_folder import next_version
from keras_transfer.tasks.registry import read_task


def evaluate_run(run_path: str | Path, data_path: str | None, *, reporter: Reporter) -> Evaluation:
    """Evaluate a run on its own test split, or on all images of a folder or CSV file.

    Args:
        data_path: targets are matched by name, so there may be only some of the run's classes.

    Raises:
        RunError: the folder has no finished run.
        DataError: the images cannot be used, changed since the run, or have unknown classes.
    """
    run = load_run(run_path)
    records, values, outputs = _predict_labelled(run, data_path, reporter)
    reporter.info(f"{describe_images(records.targets)}.")
    return run.task.evaluate(values, outputs, seed=run.spec.seed)


def export_run(
    run_path: str | Path, *, reporter: Reporter, precision: str | None = None
) -> tuple[Path, Proof]:
    """Export the run's model under the next version number, verified on its test split.

    Args:
        precision: as export.precision; None uses that of the run.

    Raises:
        RunError, DataError: the run or its test images no longer exist.
        ExportError: the exported model does not agree with the trained one.
    """
    run = load_run(run_path)
    spec = override(run.spec, {"export.precision": precision}) if precision else run.spec
    records, values, outputs = _predict_labelled(run, None, reporter)
    test = run.task.evaluate(values, outputs, seed=run.spec.seed)
    rows = run.folder.read_json("splits.json")["rows"]
    counts = {name: len(entries) for name, entries in rows.items()}
    export_folder = run.folder.export_folder
    export_folder.mkdir(exist_ok=True)
    # Another process that exports at the same time gets another number.
    with FileLock(export_folder / ".lock"):
        folder = next_version(export_folder)
        proof = deliver(
            run.model,
            folder,
            spec=spec,
            task=run.task,
            card=make_card(spec, run.model, run.task, test, counts),
            files=[records.file(row) for row in range(len(records.items))],
            outputs=outputs,
        )
    return folder, proof


def _predict_labelled(
    run: LoadedRun, data_path: str | None, reporter: Reporter
) -> tuple[Records, np.ndarray, np.ndarray]:
    """The images to evaluate on, their targets for the run's task, and the outputs."""
    listed = _test_split(run) if data_path is None else _other_images(run, data_path)
    # A finished run predicts on the current device: those of the spec are not set up.
    with open_session(
        run.spec, reporter=reporter, devices=current(), task=run.task, records=listed
    ) as session:
        records, pixels, _ = session.read_images()
        if data_path is None:
            _check_unchanged(records, run)
        values = run.task.targets(records.items).values
        outputs = predict_cached(
            run.model,
            [record.digest for record in records.items],
            pixels,
            pixels_key=pixels_key(run.spec.data),
            cache=session.cache,
            reporter=reporter,
            activation=run.task.activation,
        )
    return records, values, outputs


def _test_split(run: LoadedRun) -> Records:
    """The run's test images, as the source lists them."""
    listed = {entry["path"] for entry in run.folder.read_json("splits.json")["rows"]["test"]}
    _, records = read_task(run.spec)
    items = tuple(record for record in records.items if record.path in listed)
    missing = listed - {record.path for record in items}
    if missing:
        raise DataError(
            f"{len(missing)} test images of the run are no longer in {records.root}",
            expected=f"all {len(listed)} images of the test split",
            received=f"no {min(missing)}",
            fix="restore the images, or name other images to evaluate the run on",
        )
    rows = np.array([record.path in listed for record in records.items], bool)
    return dataclasses.replace(records, items=items, targets=records.targets.take(rows))


def _check_unchanged(records: Records, run: LoadedRun) -> None:
    rows = run.folder.read_json("splits.json")["rows"]["test"]
    digests = {entry["path"]: entry["digest"] for entry in rows}
    changed = [r.path for r in records.items if r.digest != digests[r.path]]
    changed += [bad.path for bad in records.bad_files]
    if changed:
        raise DataError(
            f"{len(changed)} test images changed since the run",
            expected="the files that the run was evaluated on",
            received=f"other content in {changed[0]}",
            fix="restore the images, or name other images to evaluate the run on",
        )


def _other_images(run: LoadedRun, data_path: str) -> Records:
    changes = {**images_at(data_path), "data.min_per_class": 0}
    return read_task(override(run.spec, changes))[1]
