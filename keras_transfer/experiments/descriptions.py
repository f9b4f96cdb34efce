"""What a run decided, in plain sentences."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_transfer.data.records import Records
from keras_transfer.data.splits import Splits
from keras_transfer.data.views import strengths
from keras_transfer.devices.strategy import current
from keras_transfer.features.extraction import ExtractionStats
from keras_transfer.models.classifier import HEAD, Classifier
from keras_transfer.specs import RunSpec
from keras_transfer.training.fitting import Outcome

MAX_NAMED = 5
"""Bad files named on the terminal; run.log names them all."""


def describe_data(spec: RunSpec, records: Records, splits: Splits) -> Iterator[str]:
    """Images, bad files, splits, resizing and augmentation."""
    names = records.class_names
    shown = ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
    yield f"{len(records.items):,} images of {len(names)} classes: {shown}."
    if records.bad_files:
        named = "; ".join(f"{bad.path} ({bad.reason})" for bad in records.bad_files[:MAX_NAMED])
        more = len(records.bad_files) - MAX_NAMED
        named += f"; and {more} more in run.log" if more > 0 else ""
        yield f"{len(records.bad_files)} unreadable files left out: {named}."
    yield from records.notes
    given = {record.split for record in records.items}
    carved = [
        name for name, source in (("validation", "val"), ("test", "test")) if source not in given
    ]
    origin = (
        f"{' and '.join(carved)} split off from training, stratified, seed {spec.seed}"
        if carved
        else "as the source has them"
    )
    yield (
        f"{len(splits.train):,} train, {len(splits.val):,} validation, {len(splits.test):,} test "
        f"({origin})."
    )
    yield (
        f"Every image becomes {spec.data.image_size} × {spec.data.image_size} px by "
        f"'{spec.data.resize}', here and in the exported model."
    )
    with warnings.catch_warnings(record=True) as ignored:
        yield _describe_views(spec)
    yield from (f"Ignored: {warning.message}." for warning in ignored)
    yield from _describe_balance(spec, records, splits)


def _describe_views(spec: RunSpec) -> str:
    used = strengths(spec.views)
    parts = {
        "mirrored left to right": used.horizontal_flip,
        "mirrored top to bottom": used.vertical_flip,
        f"turned by up to {used.rotation:g}°": used.rotation,
        f"zoomed by up to {used.zoom:.0%}": used.zoom,
        f"shifted by up to {used.translation:.0%}": used.translation,
        f"cropped to {used.crop_area:.0%} of the area or more": used.crop_area != 1,
        f"brightness ± {used.brightness:.0%}": used.brightness,
        f"contrast ± {used.contrast:.0%}": used.contrast,
        f"saturation ± {used.saturation:.0%}": used.saturation,
        f"hue ± {used.hue:.0%} of a turn": used.hue,
        f"noise of {used.noise:g}": used.noise,
        f"a box erased in {used.erasing:.0%} of them": used.erasing,
    }
    active = [text for text, strength in parts.items() if strength]
    count = spec.views.count
    if count == 1 and active:
        return "Training images are not augmented: the only view of each is the plain one."
    if not active:
        return "Training images are not augmented."
    shown = f"{count} views of each, one of them plain" if count else "a new view in every epoch"
    return f"Training images are augmented ('{spec.views.policy}', {shown}): {', '.join(active)}."


def _describe_balance(spec: RunSpec, records: Records, splits: Splits) -> Iterator[str]:
    counts = np.bincount(np.asarray(records.labels())[splits.train])
    if spec.training.class_weights == "balanced":
        yield "The loss weighs classes by inverse frequency."
    elif spec.training.sampling == "balanced":
        yield "Every class is drawn equally often."
    elif counts.max() >= 3 * counts.min():
        yield (
            f"The classes are imbalanced ({counts.min()} to {counts.max()} training images); "
            "training.class_weights=balanced or training.sampling=balanced would correct it."
        )


def _describe_norms() -> str:
    devices = current()
    if devices.num_devices == 1:
        return "."
    whole = devices.strategy == "data_parallel"
    on = "on the whole of every batch" if whole else "on each device's part of every batch"
    return f", {on}."


def describe_model(spec: RunSpec, classifier: Classifier) -> str:
    """Trunk, weights, stages and BatchNormalization."""
    stages = [stage for stage in classifier.stages if stage != HEAD]
    norms = any(phase.train_batchnorm for phase in spec.phases)
    weights = {
        "imagenet": "ImageNet weights",
        "embedded": "the weights that ship with the package",
        "none": "random weights",
    }.get(spec.model.weights, f"weights from {spec.model.weights}")
    return (
        f"{spec.model.backbone} with {weights}, stages {', '.join(stages)}, and a "
        f"{spec.model.head} head: {classifier.model.count_params():,} parameters; "
        + (
            "BatchNormalization learns where a phase says so" + _describe_norms()
            if norms
            else "BatchNormalization stays frozen in every phase."
        )
    )


def describe_cache(
    num_decoded: int,
    extraction_stats: Sequence[ExtractionStats],
    outcomes: Sequence[Outcome],
    splits: Splits,
) -> dict[str, Any]:
    """What was computed once and what that saved, as `cache.json` has it."""
    per_epoch = len(splits.train) + len(splits.val)
    return {
        "images_decoded": num_decoded,
        "views_computed": sum(stats.num_computed for stats in extraction_stats),
        "views_found": sum(stats.num_found for stats in extraction_stats),
        "views_trained_on": sum(outcome.epochs * per_epoch for outcome in outcomes),
        "bytes": sum(stats.num_bytes for stats in extraction_stats),
        "passes": [
            {
                "seconds": stats.seconds,
                "views_per_second": stats.rate or stats.choice.rate,
                **stats.choice.to_dict(),
            }
            for stats in extraction_stats
        ],
    }


def describe_saving(cache: dict[str, Any]) -> str:
    """How often the frozen layers ran, and how often they would have run."""
    if not cache["passes"]:
        return "No features were read or stored here."
    computed, trained_on = cache["views_computed"], cache["views_trained_on"]
    text = f"Frozen layers ran on {computed:,} views instead of {trained_on:,}, epoch by epoch"
    rate = cache["passes"][0]["views_per_second"]
    if trained_on > computed:
        text += f": {(trained_on - computed) / rate:.1f} s saved at {rate:,.0f} views/s"
    return text + "."
