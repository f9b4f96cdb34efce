"""Evaluation and export of a finished run."""

import dataclasses
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from keras_transfer.config import images_at, override
from keras_transfer.data.audit import pixels_key
from keras_transfer.data.records import Records, counted
from keras_transfer.data.splits import read_manifest
from keras_transfer.devices.strategy import current
from keras_transfer.errors import DataError
from keras_transfer.evaluation.results import Evaluation
from keras_transfer.experiments.privacy import privacy_limits
from keras_transfer.experiments.run_results import as_trained
from keras_transfer.experiments.session import open_session
from keras_transfer.experiments.summary import describe_images
from keras_transfer.export.bundle.deployment import deliver
from keras_transfer.export.card import Card, make_card
from keras_transfer.export.kept_images import find_or_kept
from keras_transfer.export.saved_model.proof import Proof
from keras_transfer.features.cached_logits import predict_cached
from keras_transfer.inference.prediction import LoadedRun, load_run
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import next_version, version_folders
from keras_transfer.tasks.registry import read_targets


def evaluate_run(
    run_path: str | Path,
    data_path: str | None,
    *,
    reporter: Reporter,
    moved_to: str | None = None,
    include_training: bool = False,
) -> Evaluation:
    """Evaluate a run on its own test split, or on the images of a folder or CSV file.

    Args:
        data_path: targets are matched by name; there may be only some of the run's classes.
        moved_to: where the run's own images are now; None is its `data.path`.
        include_training: whether images of `data_path` count that the run was trained on.

    Raises:
        RunError: the folder has no finished run.
        DataError: the images cannot be used, changed since the run, have unknown classes, or were
            all used in training.
    """
    run = load_run(run_path).at(moved_to)
    if data_path is None:
        records, values, outputs = predict_test(run, reporter, all_needed=True)
    else:
        listed = read_targets(run.task, override(run.spec, images_at(data_path)).data)
        leave_out = set() if include_training else _training_digests(run)
        records, values, outputs = _predict_labelled(run, listed, reporter, leave_out=leave_out)
    reporter.info(f"{describe_images(records.targets)}.")
    return run.task.evaluate(values, outputs, seed=run.spec.seed)


def export_run(
    run_path: str | Path,
    *,
    reporter: Reporter,
    precision: str | None = None,
    moved_to: str | None = None,
) -> tuple[Path, Proof]:
    """Export the run's model under the next version number, verified on its test split.

    Args:
        precision: as export.precision; None uses that of the run.
        moved_to: where the run's own images are now; None is its `data.path`.

    Raises:
        RunError, DataError: the run or its test images no longer exist.
        ExportError: the exported model does not agree with the trained one.
    """
    run = load_run(run_path).at(moved_to)
    spec = override(run.spec, {"export.precision": precision}) if precision else run.spec
    records, values, outputs = predict_test(run, reporter, all_needed=False)
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
            card=_card(run, spec, values, outputs),
            files=[records.file(row) for row in range(len(records.items))],
            outputs=outputs,
            reporter=reporter,
        )
    return folder, proof


def _card(run: LoadedRun, spec: RunSpec, values: np.ndarray, outputs: np.ndarray) -> Card:
    """The card of the model; with only some test images, that of the last export."""
    rows = run.folder.read_json("splits.json")["rows"]
    versions = version_folders(run.folder.export_folder)
    last = Card.read(versions[max(versions)]) if versions else None
    if len(values) == len(rows["test"]):
        counts = {name: len(entries) for name, entries in rows.items()}
        test = run.task.evaluate(values, outputs, seed=run.spec.seed)
        metrics = run.folder.read_json("metrics.json") if run.folder.is_complete else {}
        if metrics:
            spec = as_trained(spec, [phase["name"] for phase in metrics["phases"]])
            counts |= {"refit": metrics["refit"]["num_images"]} if metrics["refit"] else {}
        card = make_card(spec, run.model, run.task, test, counts, limits=_limits(metrics))
        # The spec of a combination of runs is that of the first of them.
        return card.with_origins([last]) if last else card
    if not last:
        raise DataError(
            f"the test figures of {run.folder.path} cannot be computed",
            expected=f"all {len(rows['test'])} test images, or an earlier export with its card",
            received=f"{len(values)} images that the run keeps, and no export",
            fix="give the place of the images: data.path=…",
        )
    return last


def _limits(metrics: Mapping[str, Any]) -> list[str]:
    """Sentences of the card on privacy, and on what the model was adapted to."""
    adapted = metrics.get("adaptation", {}).get("sentence")
    return [*privacy_limits(metrics.get("privacy")), *([adapted] if adapted else [])]


def predict_test(
    run: LoadedRun, reporter: Reporter, *, all_needed: bool
) -> tuple[Records, np.ndarray, np.ndarray]:
    """As `predict_split`, for the run's test images."""
    return predict_split(run, "test", reporter, all_needed=all_needed)


def predict_split(
    run: LoadedRun, split: str, reporter: Reporter, *, all_needed: bool = True
) -> tuple[Records, np.ndarray, np.ndarray]:
    """As `_predict_labelled`, for the run's images in 'val' or 'test', in their order.

    The source is not listed again. `all_needed` is as in `find_or_kept`.
    """
    # They were readable in training.
    run = dataclasses.replace(run, spec=override(run.spec, {"data.on_bad_file": "error"}))
    records, splits = read_manifest(run.folder.read_json("splits.json"))
    listed = [records[row] for row in getattr(splits, split)]
    items, root = find_or_kept(listed, run, split=split, all_needed=all_needed, reporter=reporter)
    return _predict_labelled(run, Records(items, run.task.targets(items), root), reporter)


def _predict_labelled(
    run: LoadedRun, listed: Records, reporter: Reporter, *, leave_out: Container[str] = ()
) -> tuple[Records, np.ndarray, np.ndarray]:
    """The images to evaluate on, their targets for the run's task, and the outputs.

    `leave_out` has digests of images that were used in training.
    """
    # A finished run predicts on the current device: those of the spec are not set up.
    with open_session(
        run.spec, reporter=reporter, devices=current(), task=run.task, records=listed
    ) as session:
        records, pixels, _ = session.read_images()
        rows = [n for n, record in enumerate(records.items) if record.digest not in leave_out]
        if len(rows) < len(records.items):
            records = _without_training(records, np.array(rows, np.int64), reporter)
            pixels = pixels.part(np.array(rows, np.int64))
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


def _without_training(records: Records, rows: np.ndarray, reporter: Reporter) -> Records:
    """The records of `rows`, which were not used in training."""
    num_left_out = len(records.items) - len(rows)
    if not len(rows):
        raise DataError(
            f"all {num_left_out} images were used in the run's training",
            expected="images that the run was not trained and not chosen on",
            received="only images of its training and validation splits",
            fix="give other images, or --include-training (in Python include_training=True) for "
            "figures that say nothing about new images",
        )
    words = counted(num_left_out, "image was", "images were")
    reporter.info(
        f"{words} used in the run's training (training and validation splits) and left out; "
        "--include-training (in Python include_training=True) keeps them."
    )
    items = tuple(records.items[row] for row in rows)
    return dataclasses.replace(records, items=items, targets=records.targets.take(rows))


def _training_digests(run: LoadedRun) -> set[str]:
    """Digests of the images that the run was trained on, or chosen on."""
    records, splits = read_manifest(run.folder.read_json("splits.json"))
    return {records[row].digest for row in (*splits.train, *splits.val)}
