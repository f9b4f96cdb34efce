"""A finished run in other formats: made, held against the model on its test split, compared."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import keras
import numpy as np

from keras_transfer.data.audit import pixels_key
from keras_transfer.data.reading import DecodedImage, read_pixels
from keras_transfer.data.sources import read_records
from keras_transfer.errors import DataError, ExportError
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats import variants as ways
from keras_transfer.export.formats.agreement import num_processors
from keras_transfer.export.formats.making import Job, files_of, make_formats
from keras_transfer.export.formats.registry import Format, check_libraries
from keras_transfer.export.formats.report import Row, write_comparison
from keras_transfer.export.saved_model.proof import policy_of
from keras_transfer.features.cached_logits import known_probabilities
from keras_transfer.inference.prediction import LoadedRun, load_run
from keras_transfer.models.forward import predict_pixels
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.storage.atomic import discard_partials, replacing
from keras_transfer.storage.cache import open_cache

NUM_RANGES: Final = 64
"""Training images that int8 formats take the ranges of their activations from."""

MAX_TEST_IMAGES: Final = 1024
"""Test images that every format answers, spread evenly; more would take hours and tell little."""


@dataclass(frozen=True, eq=False)
class SplitImages:
    """Images of one split: uint8 [N, S, S, 3], their classes int64 [N], digests of the files."""

    pixels: np.ndarray
    labels: np.ndarray
    digests: list[str]


def convert_run(
    run_path: str | Path,
    export_folder: Path,
    formats: Sequence[Format],
    *,
    compare: bool,
    reporter: Reporter,
) -> tuple[Path, list[Row]]:
    """Write a run's network in other formats beside one of its exports.

    Args:
        export_folder: `RUN/export/<version>`; the formats land in `RUN/formats/<version>`.
        compare: also time all of them in turns, beside Keras, the SavedModel and Keras's own
            export of the model.

    Returns:
        the folder, and a row for each way that was tried; files of refused ones are not kept.

    Raises:
        ExportError: a library is missing, or no format could be made that agrees.
        DataError: images of the run are gone or changed.
        RunError: the disk is full, or the folder cannot be written.
    """
    check_libraries(formats)
    run = load_run(run_path)
    reporter.info("Reading the run's test images, and training images for ranges …")
    test, train = read_split(run, "test", MAX_TEST_IMAGES), read_split(run, "train", NUM_RANGES)
    contract = Contract.of(run.spec, run.class_names)
    folder = run.folder.path / "formats" / export_folder.name
    # What a killed conversion left half written.
    discard_partials(folder.parent)
    with replacing(folder) as path, tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        path.mkdir()
        contract.write(path)
        for name, split in (("test", test), ("train", train)):
            np.save(scratch / f"{name}.npy", split.pixels)
        job = Job(
            model_file=run.folder.model_file,
            folder=path,
            class_hash=contract.class_hash,
            formats=tuple(entry.name for entry in formats),
            images=scratch / "train.npy",
            scratch=scratch,
            plain=compare,
        )
        if keras.backend.backend() != "tensorflow":
            reporter.info("A process in which Keras runs on TensorFlow makes the formats …")
        failed = make_formats(job, reporter=reporter)
        tried = ways.of_formats(formats, path)
        if compare:
            own = {way.name for way in tried}
            others = ways.to_compare_with(run.folder.model_file, export_folder, scratch)
            tried = [way for way in others if way.name not in own] + tried
            tried += ways.in_bfloat16(formats, path)
        bench = ways.Bench(
            contract=contract,
            pixels_file=scratch / "test.npy",
            probabilities=_probabilities(run, test, reporter),
            labels=test.labels,
            trained_in=policy_of(run.model),
        )
        reporter.info(f"Asking each format about {len(test.labels):,} test images …")
        rows = ways.try_all(tried, bench, failed=failed, timed=compare, reporter=reporter)
        _drop_refused(rows, formats, path)
        notes = ways.notes([row.name for row in rows], timed=compare)
        write_comparison(rows, path, num_threads=num_processors(), notes=notes)
    return folder, rows


def read_split(run: LoadedRun, name: str, limit: int) -> SplitImages:
    """At most `limit` images of a run's split, spread evenly over its manifest.

    Raises:
        DataError: one of them is gone, or is not the file that the run saw.
    """
    listed = run.folder.read_json("splits.json")["rows"][name]
    chosen = np.linspace(0, len(listed) - 1, min(limit, len(listed))).round().astype(int)
    entries = [listed[row] for row in chosen]
    data, root = run.spec.data, read_records(run.spec.data).root
    images = read_pixels(
        [root / entry["path"] for entry in entries],
        image_size=data.image_size,
        resize=data.resize,
        max_megapixels=data.max_megapixels,
    )
    pixels = np.empty((len(entries), data.image_size, data.image_size, 3), np.uint8)
    for row, (entry, image) in enumerate(zip(entries, images, strict=True)):
        if not isinstance(image, DecodedImage) or image.digest != entry["digest"]:
            raise DataError(
                f"images of the run's {name} split changed since the run",
                expected="the files that the run was trained and judged on",
                received=f"another content of {entry['path']}"
                if isinstance(image, DecodedImage)
                else f"{entry['path']}: {image.reason}",
                fix="restore the images, or export without --formats",
            )
        pixels[row] = image.pixels
    column = {label: number for number, label in enumerate(run.class_names)}
    labels = np.array([column[entry["label"]] for entry in entries], np.int64)
    return SplitImages(pixels, labels, [entry["digest"] for entry in entries])


def _probabilities(run: LoadedRun, test: SplitImages, reporter: Reporter) -> np.ndarray:
    """The model's own, float32 [N, C]: as the run stored them, computed where it did not."""
    cache_key = pixels_key(run.spec.data)
    with open_cache(run.spec, reporter=reporter) as cache:
        known = known_probabilities(run.model, pixels=cache_key, cache=cache)
    missing = [row for row, digest in enumerate(test.digests) if digest not in known]
    computed = iter(predict_pixels(run.model, test.pixels, rows=np.array(missing, np.int64)))
    return np.stack([known[d] if d in known else next(computed) for d in test.digests])


def _drop_refused(rows: Sequence[Row], formats: Sequence[Format], folder: Path) -> None:
    refusals = {row.name: row.refusal for row in rows if row.refusal}
    for entry in formats:
        if entry.name in refusals:
            for file in files_of(folder / entry.file):
                file.unlink(missing_ok=True)
    if all(entry.name in refusals for entry in formats):
        raise ExportError(
            "no format could be made that agrees with the model",
            expected="at least one",
            received="; ".join(f"{name}: {why}" for name, why in refusals.items()),
            fix="name other --formats; those that are not quantised agree most easily",
        )
