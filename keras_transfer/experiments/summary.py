"""Sentences and tables on a run: its decisions and its results."""

import shlex
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras

from keras_transfer.backbones.record import Trunk
from keras_transfer.data.records import Records, counted
from keras_transfer.data.splits import Splits
from keras_transfer.data.targets import Targets
from keras_transfer.data.views import POLICIES, strengths
from keras_transfer.devices.strategy import current
from keras_transfer.errors import enumerated
from keras_transfer.evaluation.results import Evaluation
from keras_transfer.experiments.privacy import describe_membership, describe_privacy
from keras_transfer.experiments.sparsity import Sparsity
from keras_transfer.export.saved_model.proof import (
    AS_TRAINED,
    NOISE,
    PROOF_FILE,
    Proof,
    Variant,
    describe_refused,
)
from keras_transfer.features.extraction import ExtractionStats
from keras_transfer.models.classifier import Classifier
from keras_transfer.reporting.reporter import TerminalReporter
from keras_transfer.specs import COLOURS, HEAD, DataSpec, RunSpec
from keras_transfer.storage.model_files import OWN_WEIGHTS, find_file
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.task import Monitor
from keras_transfer.training.fitting import Outcome
from keras_transfer.training.refitting import Refit

_MOST_NAMED: Final = 5
_FEW_VIEWS: Final = 100
"""Of fewer views the rate is mostly that of the first batch, which builds the graph."""
"""Unreadable files named on the terminal; run.log names all of them."""


@dataclass(frozen=True)
class Result:
    """The result of a run.

    `refit` is None where the phases were not trained once more on validation images as well,
    `sparsity` where no weights were pruned, `privacy`, as in metrics.json, where no head was
    trained with differential privacy, and `sparsity` and `proof` on all hosts except the first,
    which exports.
    """

    run: RunFolder
    classifier: Classifier
    outcomes: list[Outcome]
    refit: Refit | None
    test: Evaluation
    proof: Proof | None
    sparsity: Sparsity | None
    privacy: dict[str, Any] | None
    seconds: float


def describe_data(spec: RunSpec, records: Records, splits: Splits) -> Iterator[str]:
    """Images, unreadable files, splits, resizing and augmentation."""
    names = records.targets.strata_names
    shown = enumerated(names, 10)
    yield f"{describe_images(records.targets)}: {shown}."
    if records.bad_files:
        named = "; ".join(f"{bad.path} ({bad.reason})" for bad in records.bad_files[:_MOST_NAMED])
        more = len(records.bad_files) - _MOST_NAMED
        named += f"; and {more} more in run.log" if more > 0 else ""
        words = counted(len(records.bad_files), "unreadable file", "unreadable files")
        yield f"{words} left out: {named}."
    yield from records.notes
    given = {record.split for record in records.items}
    drawn = [name for name, own in (("validation", "val"), ("test", "test")) if own not in given]
    origin = (
        f"{' and '.join(drawn)} split off from training, stratified, seed {spec.seed}"
        if drawn
        else "as the source has them"
    )
    yield (
        f"{len(splits.train):,} train, {len(splits.val):,} validation, {len(splits.test):,} test "
        f"({origin})."
    )
    yield from _shares_without_effect(spec, given)
    channels = {3: "", 1: " in grey"}.get(spec.data.channels, f" of {spec.data.channels} channels")
    yield (
        f"Every image becomes {spec.data.image_size} × {spec.data.image_size} px{channels} by "
        f"'{spec.data.resize}', here and in the exported model."
    )
    with warnings.catch_warnings(record=True) as ignored:
        yield _describe_views(spec)
    yield from (f"Ignored: {warning.message}." for warning in ignored)
    yield from _describe_balance(spec, records, splits)


def describe_images(targets: Targets) -> str:
    """The number of images and of classes, or other strata."""
    return f"{len(targets):,} images of {len(targets.strata_names)} {plural_of(targets.kind)}"


def plural_of(kind: str) -> str:
    """The plural of what a stratum is called."""
    return "classes" if kind == "class" else f"{kind}s"


def _describe_views(spec: RunSpec) -> str:
    used = strengths(spec.views, spec.data.channels)
    parts = {
        "mirrored left to right": used.horizontal_flip,
        "mirrored top to bottom": used.vertical_flip,
        f"rotated by up to {used.rotation:g}°": used.rotation,
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
    policy = POLICIES[spec.views.policy]
    is_less = (policy["saturation"], policy["hue"]) != (used.saturation, used.hue)
    is_less &= spec.data.channels != COLOURS
    return (
        f"Training images are augmented ('{spec.views.policy}', {shown}): {', '.join(active)}."
        + (" Saturation and hue need red, green and blue, and are left out." if is_less else "")
    )


def _describe_balance(spec: RunSpec, records: Records, splits: Splits) -> Iterator[str]:
    counts = records.targets.strata[splits.train].sum(axis=0)
    kind, plural = records.targets.kind, plural_of(records.targets.kind)
    if spec.training.class_weights == "balanced":
        yield f"The loss weighs {plural} by inverse frequency."
    elif spec.training.sampling == "balanced":
        yield f"Every {kind} is drawn equally often."
    elif counts.max() >= 3 * counts.min():
        yield (
            f"The {plural} are imbalanced ({counts.min()} to {counts.max()} training images); "
            "training.class_weights=balanced or training.sampling=balanced would correct it."
        )


def describe_model(spec: RunSpec, classifier: Classifier) -> str:
    """Trunk, weights, stages, BatchNormalization, adapters, and how a model file was read."""
    stages = [stage for stage in classifier.stages if stage != HEAD]
    weights = {
        "imagenet": "ImageNet weights",
        "package": "the weights of an installed package",
        "embedded": "the weights that ship with the package",
        "none": "random weights",
        OWN_WEIGHTS: "its own weights",
    }.get(spec.model.weights, f"weights from {find_file(spec.model.weights)}")
    backbone = classifier.trunk.backbone
    sentences = [f"BatchNormalization {_describe_batchnorm(spec)}."]
    if classifier.trunk.added:
        sentences.append(_describe_adapters(classifier.trunk))
    return (
        f"{backbone.name} with {weights}, stages {', '.join(stages)}, and a "
        f"{spec.model.head} head: {classifier.model.count_params():,} parameters; "
        + " ".join([*sentences, *backbone.notes])
    )


def _describe_adapters(trunk: Trunk) -> str:
    added = [layer for layer in trunk.layers if layer.name in trunk.added]
    size = sum(layer.count_params() for layer in added)
    share = size / (trunk.num_parameters - size)
    num_sums = sum(isinstance(layer, keras.layers.Add) for layer in added)
    return f"{num_sums} adapters have {size:,} weights, {100 * share:.1f} % of the backbone's."


def _describe_batchnorm(spec: RunSpec) -> str:
    if not any(phase.train_batchnorm for phase in spec.phases):
        return "stays frozen in every phase"
    devices, text = current(), "is trained in phases with train_batchnorm=true"
    if devices.num_devices == 1:
        return text
    whole = devices.strategy == "data_parallel"
    return f"{text}, on {'every whole batch' if whole else 'each device’s part of every batch'}"


def describe_cache(
    num_decoded: int,
    extraction_stats: Sequence[ExtractionStats],
    outcomes: Sequence[Outcome],
    splits: Splits,
) -> dict[str, Any]:
    """The content of cache.json: how many views were computed, and how many were trained on."""
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


def describe_teachers(teacher_stats: Sequence[ExtractionStats]) -> dict[str, int]:
    """How many views the teachers of a distillation ran on, and how many were stored already."""
    return {
        "views_computed": sum(stats.num_computed for stats in teacher_stats),
        "views_found": sum(stats.num_found for stats in teacher_stats),
    }


def _shares_without_effect(spec: RunSpec, given: Collection[str | None]) -> Iterator[str]:
    """A sentence for each share of a split that was set, where the source has that split."""
    for name, words in (("val", "validation"), ("test", "test")):
        share = getattr(spec.data, f"{name}_fraction")
        if name in given and share != getattr(DataSpec(), f"{name}_fraction"):
            yield (
                f"data.{name}_fraction={share:g} has no effect: the source has {words} images of "
                "its own. Point data.path at a folder or file without them to have them split off."
            )


def describe_saving(cache: dict[str, Any]) -> str:
    """How many views the frozen layers ran on, and on how many without the cache."""
    if not cache["passes"]:
        return "No features were read or stored here."
    computed, trained_on = cache["views_computed"], cache["views_trained_on"]
    if trained_on <= computed:
        return f"Frozen layers ran on {computed:,} views."
    text = (
        f"The cache of features: training used {trained_on:,} views, and the frozen layers "
        f"computed {computed:,} of them"
    )
    if computed < _FEW_VIEWS:
        return f"{text}."
    rate = cache["passes"][0]["views_per_second"]
    return f"{text}, which saved {(trained_on - computed) / rate:.1f} s at {rate:,.0f} views/s."


def show_result(
    result: Result, terminal: TerminalReporter, *, started: float | None = None
) -> None:
    """Print phases, test figures, the agreement of the export, and the paths of the files.

    Args:
        started: `time.perf_counter()` when the command began; None: only the run is timed.
    """
    monitor = result.classifier.task.monitor
    rows = [
        [
            outcome.name + ("" if outcome.kept else " (undone)"),
            f"{outcome.epochs}",
            f"{outcome.seconds:.0f}",
            f"{outcome.num_trainable:,}",
            monitor.format_interval(outcome.val_score, outcome.val_interval),
            _test_cell(outcome, monitor),
        ]
        for outcome in result.outcomes
    ]
    header = ["phase", "epochs", "seconds", "trainable", "validation", "test"]
    caption = f"{monitor.label}, with its 95 % interval below"
    terminal.table(f"Run {result.run.path}", header, rows, caption=caption)
    if result.refit:
        terminal.info(
            f"The model was trained once more, on all {result.refit.num_images:,} training and "
            "validation images. The table is about the one before, all that follows about this "
            "one, which is delivered."
        )
    terminal.info(f"Delivered model: {result.test.describe()}")
    if result.proof:
        terminal.info(describe_proof(result.proof))
    if result.sparsity:
        terminal.info(result.sparsity.describe())
    if result.privacy:
        terminal.info(describe_privacy(result.privacy))
        terminal.info(describe_membership(result.privacy, monitor))
    path = result.run.path
    terminal.info(f"Model {path / 'model.keras'}, SavedModel {path / 'export' / '1'}")
    if started is None:
        terminal.info(f"The run took {result.seconds:.0f} seconds.")
        return
    seconds = time.perf_counter() - started
    terminal.info(f"{seconds:.0f} seconds in all, {result.seconds:.0f} of them for the run.")


def show_next(path: Path, terminal: TerminalReporter) -> None:
    """Print what to read of a finished run, and the commands that use it."""
    card, mistakes = path / "export" / "README.md", path / "figures" / "mistakes.png"
    wrong = mistakes if mistakes.is_file() else path / "predictions.csv"
    terminal.info(f"How good it is: {card} (the model card). Where it is wrong: {wrong}")
    run = shlex.quote(str(path))
    terminal.info(f"To predict: python -m pipelines.predict {run} photo.jpg")
    terminal.info(f"To serve: python -m pipelines.serve {run}")


def _test_cell(outcome: Outcome, monitor: Monitor) -> str:
    """Test score after a phase; the trials of a search are not evaluated on the test split."""
    if outcome.test_score is None or outcome.test_interval is None:
        return "–"
    return monitor.format_interval(outcome.test_score, outcome.test_interval)


def show_evaluation(evaluation: Evaluation, terminal: TerminalReporter) -> None:
    """Print the figures of an evaluation."""
    for table in evaluation.tables():
        terminal.table(*table)
    terminal.info(evaluation.describe())


def describe_export(folder: Path) -> str:
    """What an export has written, and where."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return (
        f"Written: {folder}, a SavedModel of {size / 1e6:,.1f} MB, version {folder.name} of the "
        f"model; earlier versions are kept. Its proof: {folder / PROOF_FILE}"
    )


def _verdict(variant: Variant, proof: Proof) -> str:
    """Whether a variant is exported, and by which rule."""
    if not variant.parity:
        return "left out, because it disagrees with the model"
    is_slower = variant.milliseconds[1] > proof.variants[0].milliseconds[1]
    if variant == proof.kept:
        text = "kept, as the fastest on average"
        return text + ", though slower for one image" if is_slower else text
    if proof.kept.name == AS_TRAINED:
        return f"left out, because it is not at least {1 - NOISE:.0%} faster on average"
    return "left out, because another one is faster on average"


def describe_proof(proof: Proof) -> str:
    """The agreement of the artefact with the model, and the speed of the exported network."""
    parity = proof.parity
    sentences = [
        f"Export verified in a process without Keras: on {parity.num_files} test files "
        f"{parity.label_agreement:.0%} of the predictions agree, outputs within "
        f"{parity.max_abs_difference:.1e}.",
        *describe_refused(parity),
    ]
    trained = proof.variants[0]
    for variant in proof.variants[1:]:
        shares = [
            f"{variant.milliseconds[size] / trained.milliseconds[size]:.2f} × for {size}"
            for size in variant.milliseconds
        ]
        sentences.append(
            f"Latency of the network {variant.name} in {variant.precision}, relative to the "
            f"trained one, by batch size: {', '.join(shares)}: {_verdict(variant, proof)}."
            if shares
            else f"The network {variant.name} in {variant.precision} cannot be served: left out."
        )
    if proof.kept.name == AS_TRAINED:
        sentences.append("The network is exported as it was trained.")
    if proof.backend == "jax":
        sentences.append(
            "XLA runs it, and compiles it again for each batch size. For servers without "
            "accelerators, KERAS_BACKEND=tensorflow python -m pipelines.export on this run may "
            "write a faster one."
        )
    return " ".join(sentences)
