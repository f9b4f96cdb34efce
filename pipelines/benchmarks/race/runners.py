"""The processes of a race: link the splits, measure the limits, and train one recipe.

Called through `call_in_subprocess`, so the public functions take and return JSON values.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keras_transfer.config import override, spec_from_dict
from keras_transfer.data.images import decoding_of
from keras_transfer.data.reading import DecodedImage, read_pixels
from keras_transfer.data.splits import NAMES, make_splits, manifest
from keras_transfer.devices import set_up
from keras_transfer.devices.memory import peak_mb
from keras_transfer.experiments.session import open_session
from keras_transfer.features.extraction import ExtractionStats
from keras_transfer.features.phase_inputs import find_cuts
from keras_transfer.features.prefix import choose
from keras_transfer.methods.networks import prepare_classifier
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import HEAD, RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.fitting import Outcome, fit_phases
from keras_transfer.training.refitting import initial_weights, refit
from pipelines.benchmarks.race.plain_recipe import (
    PlainRecipe,
    build_plain,
    fit_plain,
    link_splits,
    read_split,
)
from pipelines.benchmarks.race.timings import (
    EXTRACTION,
    READING,
    REFIT,
    SETUP,
    TEST,
    Timing,
    timed,
)

_MOST_FILES = 2_000
"""Number of files that decoding is measured on."""

_FORWARD_SECONDS = 2.0


def survey(spec: dict[str, Any], scratch: str, num_seeds: int) -> dict[str, dict[str, float]]:
    """Link the splits of every seed into folders, and measure the limits of this machine.

    Returns:
        `num_images` by split, and `limits`, the fields of `Limits`.
    """
    first = spec_from_dict(spec)
    num_images = lay_out(first, scratch, num_seeds)
    return {"num_images": num_images, "limits": _measure_limits(first, scratch)}


def lay_out(spec: RunSpec, scratch: str, num_seeds: int) -> dict[str, float]:
    """Folders of links, `<scratch>/splits-<seed>`, to the same splits that a session draws."""
    # The cache of the race stays empty: every run decodes the images itself.
    uncached, lent = override(spec, {"cache.mode": "off"}), RunFolder(Path(scratch))
    with open_session(uncached, reporter=SilentReporter(), run=lent) as session:
        records = session.read_images().records
    for seed in range(spec.seed, spec.seed + num_seeds):
        splits = make_splits(records, spec.data, seed=seed)
        folder = splits_folder(scratch, seed)
        link_splits(records, splits, folder, max_megapixels=spec.data.max_megapixels)
        (folder / "hash").write_text(manifest(splits, records)["hash"])
    return {split: len(getattr(splits, split)) for split in NAMES}


def splits_folder(scratch: str, seed: int) -> Path:
    """The folder in which `lay_out` writes the splits of a seed."""
    return Path(scratch) / f"splits-{seed}"


def _measure_limits(spec: RunSpec, scratch: str) -> dict[str, float]:
    """Images per second of decoding with resizing alone, and of the frozen layers alone."""
    train = splits_folder(scratch, spec.seed) / "train"
    files = sorted(train.glob("*/*"), key=lambda file: file.name)
    batch_size = min(spec.training.batch_size, len(files))
    # The first call also traces the decoder.
    batch = np.stack([image.pixels for image in _read(files[:batch_size], spec)])
    started = time.perf_counter()
    num_read = len(_read(files[:_MOST_FILES], spec))
    decode_rate = num_read / (time.perf_counter() - started)
    num_views = len(files) * (spec.views.count or 1)
    forward_rate = _forward_rate(spec, batch, num_views=num_views)
    return {"decode_rate": decode_rate, "forward_rate": forward_rate}


def _read(files: Sequence[Path], spec: RunSpec) -> list[DecodedImage]:
    found = read_pixels(files, **decoding_of(spec.data))
    return [image for image in found if isinstance(image, DecodedImage)]


def _forward_rate(spec: RunSpec, pixels: np.ndarray, *, num_views: int) -> float:
    """Views per second through the frozen layers, on decoded images.

    Args:
        pixels: uint8 [B, S, S, 3].
        num_views: views that an extraction would compute; for few views no variant is compiled.
    """
    classifier = prepare_classifier(spec, SingleLabel(("a", "b")))
    cuts = list(find_cuts(classifier, spec.phases, 0).values())
    if cuts:
        choice, prefix = choose(cuts, pixels, precision=spec.cache.precision, num_views=num_views)
        size = choice.batch_size
        forward = functools.partial(prefix, batch_size=size)
    else:  # Nothing is frozen: the network as it is.
        size, forward = len(pixels), classifier.model.predict_on_batch
    batch = np.resize(pixels, (size, *pixels.shape[1:]))
    forward(batch)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < _FORWARD_SECONDS:
        forward(batch)
        count += size
    return count / (time.perf_counter() - started)


def run_plain(spec: dict[str, Any], scratch: str, name: str) -> dict[str, Any]:
    """Train the plain recipe on the linked splits."""
    return asdict(_run_plain(spec_from_dict(spec), scratch, name))


def _run_plain(spec: RunSpec, scratch: str, name: str) -> Timing:
    stages: dict[str, float] = {}
    with timed(stages, SETUP):
        recipe, (training, validation, test) = _open_plain(spec, scratch)
    for phase in spec.phases:
        with timed(stages, phase.name):
            fit_plain(recipe, phase, spec, training=training, validation=validation)
    with timed(stages, TEST):
        figures = recipe.model.evaluate(test, return_dict=True, verbose=0)
    return Timing(name, spec.seed, stages, figures["accuracy"], peak_mb())


def _open_plain(spec: RunSpec, scratch: str) -> tuple[PlainRecipe, list[Any]]:
    """The plain recipe, untrained, and the linked splits for training, validation and test."""
    set_up(spec.devices, seed=spec.seed)
    folder = splits_folder(scratch, spec.seed)
    splits = [read_split(folder, split, spec) for split in NAMES]
    return build_plain(spec, splits[0].class_names), splits


def run_scikit_learn(spec: dict[str, Any], scratch: str, name: str) -> dict[str, Any]:
    """Fit scikit-learn's logistic regression on the trunk's features of the linked splits."""
    return asdict(_run_scikit_learn(spec_from_dict(spec), scratch, name))


def _run_scikit_learn(spec: RunSpec, scratch: str, name: str) -> Timing:
    """Standardised features of the plain images; training and validation images are both used."""
    stages: dict[str, float] = {}
    with timed(stages, SETUP):
        recipe, splits = _open_plain(spec, scratch)
        classifier = recipe.classifier
        pooled = classifier.stages[HEAD][0](classifier.trunk.output)
        base = keras.Model(classifier.model.input, pooled)
    with timed(stages, EXTRACTION):
        train, val = (_features(base, split) for split in splits[:2])
    with timed(stages, spec.phases[0].name):
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        regression.fit(*(np.concatenate(pair) for pair in zip(train, val, strict=True)))
    with timed(stages, TEST):
        accuracy = regression.score(*_features(base, splits[2]))
    return Timing(name, spec.seed, stages, float(accuracy), peak_mb())


def _features(base: keras.Model, split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, C] and class indices [N] of a split, in the order in which it is read."""
    batches = [(base.predict_on_batch(x), np.argmax(y, axis=1)) for x, y in split]
    features, labels = zip(*batches, strict=True)
    return np.concatenate(features), np.concatenate(labels)


def run_ours(spec: dict[str, Any], scratch: str, name: str) -> dict[str, Any]:
    """Train with this package and an empty cache."""
    with tempfile.TemporaryDirectory(dir=scratch) as cold:
        seeded = override(spec_from_dict(spec), {"cache.folder": str(Path(cold) / "store")})
        splits_hash = (splits_folder(scratch, seeded.seed) / "hash").read_text()
        return asdict(_run_ours(seeded, Path(cold), name, splits_hash=splits_hash))


def _run_ours(spec: RunSpec, cold: Path, name: str, *, splits_hash: str) -> Timing:
    """The steps of a run without its export, with a cache in the empty folder `cold`."""
    stages: dict[str, float] = {}
    silent = SilentReporter()
    with contextlib.ExitStack() as held:
        with timed(stages, SETUP):
            opened = open_session(spec, reporter=silent, run=RunFolder(cold))
            session = held.enter_context(opened)
            classifier = session.build_classifier()
        with timed(stages, READING):
            data = session.data
        assert manifest(data.splits, data.records)["hash"] == splits_hash
        phase_inputs = session.phase_inputs()
        before = sum(stages.values())
        started = time.perf_counter()
        initial = initial_weights(classifier, phase_inputs)
        outcomes = fit_phases(classifier, phase_inputs, reporter=silent)
        if phase_inputs.refits:
            with timed(stages, REFIT):
                refit(classifier, phase_inputs, outcomes, initial=initial, reporter=silent)
        probabilities = phase_inputs.predict(classifier, data.splits.test)
        seconds = time.perf_counter() - started - stages.get(REFIT, 0.0)
        stored = sum(info.num_bytes for info in session.cache.entries())
    refitting = stages.pop(REFIT, None)
    stages |= _split_seconds(seconds, outcomes, phase_inputs.extraction_stats)
    if refitting is not None:
        stages = {**stages, REFIT: refitting, TEST: stages.pop(TEST)}
    right = probabilities.argmax(axis=1) == data.examples.targets.values[data.splits.test]
    return Timing(
        name,
        spec.seed,
        stages,
        accuracy=float(right.mean()),
        peak_mb=peak_mb(),
        stored_mb=stored / 1e6,
        extraction_rate=_extraction_rate(phase_inputs.extraction_stats),
        reached=_reached(before + stages[EXTRACTION], outcomes, stages, float(right.mean())),
    )


def _reached(
    seconds: float, outcomes: Sequence[Outcome], stages: dict[str, float], accuracy: float
) -> list[tuple[float, float]]:
    """When each phase ended, from `seconds` on, and its test accuracy; then the end."""
    reached = []
    for outcome in outcomes:
        seconds += outcome.seconds
        assert outcome.test_score is not None
        reached.append((seconds, outcome.test_score))
    return [*reached, (sum(stages.values()), accuracy)]


def _split_seconds(
    seconds: float, outcomes: Sequence[Outcome], extraction_stats: Sequence[ExtractionStats]
) -> dict[str, float]:
    """Stages of the time in which phases were trained; the rest is evaluation.

    This package evaluates every phase on validation and test images, the plain recipe only the
    last one on test images.
    """
    stages = {EXTRACTION: sum(stats.seconds for stats in extraction_stats)}
    stages |= {outcome.name: outcome.seconds for outcome in outcomes}
    return {**stages, TEST: seconds - sum(stages.values())}


def _extraction_rate(extraction_stats: Sequence[ExtractionStats]) -> float | None:
    """Views per second, without the choice of a precision; None without extracted features."""
    return extraction_stats[0].rate if extraction_stats else None
