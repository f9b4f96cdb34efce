"""The plain recipe of the Keras guides, with which this package is compared.

    image_dataset_from_directory → augmentation layers → preprocessing → frozen trunk → head → fit,
    then unfreeze, recompile and fit again

Nothing is cached: every epoch decodes, resizes and augments every image and runs the whole trunk.
Trunk, weights, head, phases, optimizers and learning rates are those of the spec: only the
implementation differs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_transfer.data.images import read_encoded
from keras_transfer.data.records import Records
from keras_transfer.data.splits import NAMES, Splits
from keras_transfer.data.views import strengths
from keras_transfer.models.classifier import Classifier, build_classifier
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec, ViewSpec
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.optimizers import make_optimizer
from keras_transfer.training.phases import apply_phase

_KERAS_READS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
"""Suffixes that `image_dataset_from_directory` reads, whatever the format inside."""

_WITHOUT_LAYER = ("crop_area", "saturation", "hue", "noise", "erasing")
"""Strengths that the recipe leaves out: the guides use six augmentation layers."""


@dataclass(frozen=True)
class PlainRecipe:
    """The recipe's model and the classifier that its layers come from.

    `model` maps float32 [B, S, S, 3] in 0-255 to logits, augmenting in training. `classifier` has
    the same trunk and head by stage, for the phases.
    """

    model: keras.Model
    classifier: Classifier


def link_splits(records: Records, splits: Splits, folder: Path, *, max_megapixels: float) -> None:
    """Link the images of the splits as `<folder>/<split>/<class>/<row>.<suffix>`.

    The few files that TensorFlow would read differently are written as PNG instead. Folders of
    classes are padded indices: Keras sorts them by name, which keeps the order of the logits.
    """
    labels = records.targets.values
    for split in NAMES:
        for row in getattr(splits, split):
            file = records.file(row).resolve()
            suffix = file.suffix.lower() if file.suffix.lower() in _KERAS_READS else ".png"
            link = folder / split / f"{labels[row]:05d}" / f"{row:07d}{suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            encoded = read_encoded(file, max_megapixels=max_megapixels)
            if encoded.converted_from:
                link.write_bytes(encoded.data)
            else:
                link.symlink_to(file)


def read_split(folder: Path, split: str, spec: RunSpec) -> Any:
    """Batches (images, one-hot labels) of a linked split, decoded again in every epoch."""
    return keras.utils.image_dataset_from_directory(
        folder / split,
        label_mode="categorical",
        image_size=(spec.data.image_size, spec.data.image_size),
        batch_size=spec.training.batch_size,
        shuffle=split == "train",
        seed=spec.seed,
        crop_to_aspect_ratio=spec.data.resize == "crop",
        pad_to_aspect_ratio=spec.data.resize == "pad",
        verbose=False,
    )


def augmentation(views: ViewSpec) -> list[keras.layers.Layer]:
    """Keras's random layers at the strengths of the views; none for a policy without any."""
    used, layers = strengths(views), keras.layers
    flips = {
        (True, False): "horizontal",
        (False, True): "vertical",
        (True, True): "horizontal_and_vertical",
    }
    flip = flips.get((bool(used.horizontal_flip), bool(used.vertical_flip)))
    found: list[keras.layers.Layer] = [layers.RandomFlip(flip)] if flip else []
    if used.rotation:
        found.append(layers.RandomRotation(used.rotation / 360))
    if used.zoom:
        found.append(layers.RandomZoom(used.zoom))
    if used.translation:
        found.append(layers.RandomTranslation(used.translation, used.translation))
    if used.brightness:
        found.append(layers.RandomBrightness(used.brightness))
    if used.contrast:
        found.append(layers.RandomContrast(used.contrast))
    return found


def left_out(views: ViewSpec) -> list[str]:
    """Names of the strengths in use for which the recipe has no layer."""
    used, off = strengths(views), strengths(ViewSpec(policy="none"))
    return [name for name in _WITHOUT_LAYER if getattr(used, name) != getattr(off, name)]


def build_plain(spec: RunSpec, class_names: Sequence[str]) -> PlainRecipe:
    """Augmentation, then trunk and head as `build_classifier` makes them from the same seed.

    Raises:
        SpecError, WeightsError: as `build_classifier` does.
    """
    classifier = build_classifier(
        spec.model,
        image_size=spec.data.image_size,
        task=SingleLabel(tuple(class_names)),
        seed=spec.seed,
    )
    base = keras.Model(classifier.model.input, classifier.trunk.output, name="base")
    inputs = keras.Input(classifier.model.input_shape[1:])
    x = inputs
    for layer in augmentation(spec.views):
        x = layer(x)
    x = base(x, training=False)
    for layer in classifier.stages[HEAD]:
        x = layer(x)
    return PlainRecipe(keras.Model(inputs, x), classifier)


def fit_plain(
    recipe: PlainRecipe, phase: PhaseSpec, spec: RunSpec, *, training: Any, validation: Any
) -> None:
    """Freeze and unfreeze the layers of the phase, compile, fit, and restore the best weights."""
    apply_phase(recipe.classifier, phase)
    recipe.model.compile(
        optimizer=make_optimizer(phase, recipe.classifier, steps_per_epoch=len(training)),
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=spec.training.label_smoothing or 0.0
        ),
        metrics=["accuracy"],
    )
    # With this patience training never stops early; the callback only restores weights.
    best = keras.callbacks.EarlyStopping(
        "val_accuracy", mode="max", patience=phase.epochs, restore_best_weights=True
    )
    recipe.model.fit(
        training,
        validation_data=validation,
        epochs=phase.epochs,
        callbacks=[best],
        class_weight=class_weight(training, spec),
        shuffle=False,  # The data set shuffles.
        verbose=0,
    )


def class_weight(training: Any, spec: RunSpec) -> dict[int, float] | None:
    """n / (C n_c) for every class c, None where classes are not weighted."""
    if spec.training.class_weights == "none":
        return None
    names = training.class_names
    counts = Counter(Path(file).parent.name for file in training.file_paths)
    return {c: counts.total() / (len(names) * counts[name]) for c, name in enumerate(names)}
