"""Writes a finished run in other formats, and compares them with the model on its test split."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import keras
import numpy as np

from keras_transfer.data.audit import pixels_key
from keras_transfer.data.images import decoding_of
from keras_transfer.data.reading import DecodedImage, read_pixels
from keras_transfer.data.splits import read_manifest
from keras_transfer.devices.processors import num_processors
from keras_transfer.errors import DataError, ExportError
from keras_transfer.export.formats import variants
from keras_transfer.export.formats.making import Job, make_formats
from keras_transfer.export.formats.registry import MIXED, Format, check_libraries, files_of
from keras_transfer.export.formats.report import Row, write_comparison
from keras_transfer.export.kept_images import NUM_RANGES, find_or_kept, spread
from keras_transfer.export.saved_model.proof import policy_of
from keras_transfer.features.cached_logits import known_outputs
from keras_transfer.inference.prediction import LoadedRun, load_run
from keras_transfer.models.forward import predict_pixels
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.storage.atomic import discard_partials, replacing
from keras_transfer.storage.cache import open_cache
from keras_transfer.storage.checksums import write_checksums

_VALIDATION: Final = "validation.npz"
MAX_TEST_IMAGES: Final = 1024
"""Test images for every format, spread evenly; more would take hours and change little."""


@dataclass(frozen=True, eq=False)
class SplitImages:
    """Images of one split: pixels uint8 [N, S, S, C], true values, digests of the files."""

    pixels: np.ndarray
    values: np.ndarray
    digests: list[str]


def convert_run(
    run_path: str | Path,
    export_folder: Path,
    formats: Sequence[Format],
    *,
    compare: bool,
    reporter: Reporter,
    moved_to: str | None = None,
) -> tuple[Path, list[Row]]:
    """Write a run's network in other formats, next to one of its exports.

    Args:
        export_folder: `RUN/export/<version>`; the formats are written to `RUN/formats/<version>`.
        compare: also time all of them in turns, with Keras, the SavedModel and Keras's own export
            of the model.
        moved_to: where the run's own images are now; None is its `data.path`.

    Returns:
        the folder, and a row for each variant that was tried; files of refused ones are removed.

    Raises:
        ExportError: a library is missing, or no format agrees with the model.
        DataError: images of the run are missing or have changed.
        RunError: the disk is full, or the folder cannot be written.
    """
    check_libraries(formats)
    run = load_run(run_path).at(moved_to)
    reporter.info("Reading the run's test images, and training images for ranges …")
    test = read_split(run, "test", MAX_TEST_IMAGES, reporter=reporter)
    train = read_split(run, "train", NUM_RANGES, reporter=reporter)
    folder = run.folder.path / "formats" / export_folder.name
    # Incomplete files of a killed conversion.
    discard_partials(folder.parent)
    with replacing(folder) as path, tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        path.mkdir()
        run.contract.write(path)
        np.save(scratch / "test.npy", test.pixels)
        np.save(scratch / "train.npy", train.pixels)
        if any(entry.precision == MIXED for entry in formats):
            _write_validation(run, train, scratch / _VALIDATION, reporter)
        failed = _make(run, formats, path, scratch, compare=compare, reporter=reporter)
        tried = variants.of_formats(formats, path)
        if compare:
            names = {variant.name for variant in tried}
            others = variants.others(run.folder.model_file, export_folder, scratch)
            tried = [variant for variant in others if variant.name not in names] + tried
        tried += variants.in_bfloat16(formats, path)
        reference = _reference(run, test, scratch / "test.npy", reporter)
        reporter.info(f"Running each format on {len(test.values):,} test images …")
        rows = variants.compare(tried, reference, failed=failed, timed=compare, reporter=reporter)
        _drop_refused(rows, formats, path)
        notes = variants.notes([row.name for row in rows], timed=compare)
        write_checksums(path, (file.relative_to(path).as_posix() for file in files_of(path)))
        write_comparison(rows, path, num_threads=num_processors(), notes=notes)
    return folder, rows


def _write_validation(run: LoadedRun, train: SplitImages, file: Path, reporter: Reporter) -> None:
    """Images of the validation and the training split: the refit trained on both alike.

    Where they are missing, those of `train`: a run keeps no validation images.
    """
    rows = run.folder.read_json("splits.json")["rows"]
    names = [name for name in ("val", "train") if rows[name]]
    try:
        parts = [read_split(run, name, MAX_TEST_IMAGES // 2, reporter=reporter) for name in names]
    except DataError as error:
        reporter.info(
            f"{error.what}: {len(train.values)} training images choose the layers in float32."
        )
        parts = [train]
    np.savez(
        file,
        pixels=np.concatenate([part.pixels for part in parts]),
        values=np.concatenate([part.values for part in parts]),
    )


def _make(
    run: LoadedRun,
    formats: Sequence[Format],
    folder: Path,
    scratch: Path,
    *,
    compare: bool,
    reporter: Reporter,
) -> dict[str, str]:
    """Write the files; returns the errors of formats that could not be written, by name."""
    if keras.backend.backend() != "tensorflow":
        reporter.info("Writing the formats in a process in which Keras runs on TensorFlow …")
    job = Job(
        model_file=run.folder.model_file,
        folder=folder,
        formats=tuple(entry.name for entry in formats),
        images=scratch / "train.npy",
        scratch=scratch,
        validation=file if (file := scratch / _VALIDATION).is_file() else None,
        keras_export=compare,
    )
    return make_formats(job, reporter=reporter)


def _reference(
    run: LoadedRun, test: SplitImages, pixels_file: Path, reporter: Reporter
) -> variants.Reference:
    """The model's own outputs: those stored by the run, or computed if it stored none."""
    cache_key = pixels_key(run.spec.data)
    with open_cache(run.spec, reporter=reporter) as cache:
        known = known_outputs(
            run.model, pixels=cache_key, cache=cache, activation=run.task.activation
        )
    missing = [row for row, digest in enumerate(test.digests) if digest not in known]
    rows = np.array(missing, np.int64)
    computed = iter(
        predict_pixels(run.model, test.pixels, rows=rows, activation=run.task.activation)
    )
    return variants.Reference(
        contract=run.contract,
        pixels_file=pixels_file,
        outputs=np.stack([known[d] if d in known else next(computed) for d in test.digests]),
        values=test.values,
        trained_in=policy_of(run.model),
    )


def read_split(run: LoadedRun, name: str, limit: int, *, reporter: Reporter) -> SplitImages:
    """At most `limit` images of a run's split, spread evenly over its manifest.

    Where they are missing, only those that the run keeps.

    Raises:
        DataError: one of them is missing, or has changed since the run, which keeps none.
    """
    items, splits = read_manifest(run.folder.read_json("splits.json"))
    rows = getattr(splits, name)
    listed = [items[rows[position]] for position in spread(len(rows), limit)]
    data = run.spec.data
    records, root = find_or_kept(listed, run, split=name, all_needed=False, reporter=reporter)
    images = read_pixels([root / record.path for record in records], **decoding_of(data))
    pixels = np.empty((len(records), *run.contract.input_shape), np.uint8)
    for row, image in enumerate(images):
        if not isinstance(image, DecodedImage):
            raise DataError(
                f"an image of the run's {name} split cannot be read any more",
                expected="the files that the run was trained and evaluated on",
                received=f"{image.path}: {image.reason}",
                fix="restore the image, or export without --formats",
            )
        pixels[row] = image.pixels
    values = run.task.targets(records).values
    return SplitImages(pixels, values, [record.digest for record in records])


def _drop_refused(rows: Sequence[Row], formats: Sequence[Format], folder: Path) -> None:
    refusals = {row.name: row.refusal for row in rows if row.refusal}
    for entry in formats:
        if entry.name in refusals:
            for file in files_of(folder / entry.file):
                file.unlink(missing_ok=True)
    if all(entry.name in refusals for entry in formats):
        raise ExportError(
            "no format agrees with the model",
            expected="at least one",
            received="; ".join(f"{name}: {why}" for name, why in refusals.items()),
            fix="choose other --formats; those without quantisation agree most closely",
        )
