"""The classifier: one flat functional graph from raw pixels to logits, in named stages.

    image [B, S, S, C] 0-255 → Preprocess → trunk → pooling → (hidden) → dropout → logits [B, K]

The graph is flat, so that cutting at a stage, exporting and explaining all use the same one. The
task makes the head. `Rebuilder` builds many classifiers on one trunk, whose weights it restores.
"""

import random
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_transfer.backbones.adapters import Adapters, insert_adapters
from keras_transfer.backbones.record import Trunk
from keras_transfer.backbones.registry import get_backbone
from keras_transfer.backbones.stages import stages_from
from keras_transfer.backbones.trunk import build_trunk
from keras_transfer.devices.strategy import on_one_device, scope, undistributed
from keras_transfer.specs import COLOURS, HEAD, ModelSpec
from keras_transfer.storage.class_names import model_name
from keras_transfer.storage.model_files import resolve_model
from keras_transfer.tasks.task import Task


@dataclass(frozen=True)
class Classifier:
    """A Keras model together with the stage every one of its layers belongs to.

    `model` maps float32 [B, S, S, C] in 0-255 to float32 logits [B, K] of the `task`. `stages` runs
    from the bottom to 'head'; every variable of the model belongs to exactly one stage.
    """

    model: keras.Model
    trunk: Trunk
    stages: dict[str, tuple[keras.layers.Layer, ...]]
    task: Task

    def from_stage(self, lowest: str, *, field: str = "unfreeze") -> list[str]:
        """Names of `lowest` and all stages above it, bottom to top.

        Raises:
            SpecError: the model has no such stage; `field` is the spec's field named in the error.
        """
        return stages_from(lowest, list(self.stages), field=field)

    @property
    def last_dense(self) -> keras.layers.Dense:
        """The dense layer of the head that gives the logits."""
        dense = [layer for layer in self.stages[HEAD] if isinstance(layer, keras.layers.Dense)]
        return dense[-1]

    def save(self, path: Path) -> None:
        """Write the model as a `.keras` file, without the optimizer."""
        save_model(self.model, path)

    def variables_of(self, stage: str) -> list[keras.Variable]:
        """All variables of one stage, trainable or not, in the graph's order."""
        return [variable for layer in self.stages[stage] for variable in layer.variables]


def save_model(model: keras.Model, path: Path) -> None:
    """Write a `.keras` file of a new model over the same layers.

    The compiled one would include the state of its optimizer, which makes the file three times as
    large.
    """
    model = undistributed(model)
    with on_one_device():
        keras.Model(model.input, model.output, name=model.name).save(path)


def build_classifier(
    spec: ModelSpec,
    *,
    image_size: int,
    channels: int = COLOURS,
    task: Task,
    seed: int,
    adapters: Adapters | None = None,
) -> Classifier:
    """Build the graph and load the trunk's weights.

    Args:
        image_size: side of the square input, px.
        channels: values of each pixel, usually red, green and blue.
        task: makes the head; its names give the model its name (`class_names.model_name`).
        seed: of initial weights and of dropout.
        adapters: layers to add to the trunk; None for none.

    Raises:
        SpecError: unknown backbone or stage, adapters that do not fit, or an image too small for
            the trunk.
        WeightsError: the trunk's weights are missing or do not fit.
    """
    inputs, trunk = put_trunk(
        spec, image_size=image_size, channels=channels, seed=seed, adapters=adapters
    )
    return put_head(spec, inputs, trunk, task=task, seed=seed)


def put_trunk(
    spec: ModelSpec,
    *,
    image_size: int,
    channels: int,
    seed: int,
    adapters: Adapters | None = None,
) -> tuple[keras.KerasTensor, Trunk]:
    """Input and trunk of a classifier; see `build_classifier`."""
    spec = resolve_model(spec)
    backbone = get_backbone(spec.backbone, preprocess=spec.preprocess)
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((image_size, image_size, channels), name="image", dtype="float32")
    # A trunk that is copied is on an input of its own: it would stay in memory with the other one.
    images = keras.Input(inputs.shape[1:], dtype=inputs.dtype) if adapters else inputs
    with scope():
        trunk = build_trunk(
            backbone,
            images,
            last_stage=spec.last_stage,
            weights=spec.weights,
            channel_weights=spec.channel_weights,
        )
        if adapters:
            trunk = insert_adapters(trunk, images, inputs, adapters)
    return inputs, trunk


def put_head(
    spec: ModelSpec,
    inputs: keras.KerasTensor,
    trunk: Trunk,
    *,
    task: Task,
    seed: int,
) -> Classifier:
    """A classifier with a new head on a trunk that reads `inputs`; see `build_classifier`."""
    with scope():
        head = task.head(spec, seed)
        outputs = trunk.output
        for layer in head:
            outputs = layer(outputs)
        model = keras.Model(inputs, outputs, name=model_name(task.names))
    return Classifier(model, trunk, {**trunk.stages, HEAD: tuple(head)}, task)


@dataclass(frozen=True, eq=False)
class _Kept:
    """A trunk with its initial weights, and the state of the random generator after building it."""

    inputs: keras.KerasTensor
    trunk: Trunk
    weights: list[np.ndarray]
    random_states: tuple[Any, Any]

    @classmethod
    def built(
        cls,
        spec: ModelSpec,
        *,
        image_size: int,
        channels: int,
        seed: int,
        adapters: Adapters | None,
    ) -> "_Kept":
        inputs, trunk = put_trunk(
            spec, image_size=image_size, channels=channels, seed=seed, adapters=adapters
        )
        states = random.getstate(), np.random.get_state()
        return cls(inputs, trunk, [np.array(v) for v in _variables(trunk)], states)

    def restore(self) -> None:
        """Restore the trunk's weights and the state of the random generator."""
        for variable, value in zip(_variables(self.trunk), self.weights, strict=True):
            # Comparing is faster than writing, and training changes little of the trunk.
            if not np.array_equal(variable, value):
                variable.assign(value)
        for layers in self.trunk.stages.values():
            for layer in layers:
                layer.trainable = True
        random.setstate(self.random_states[0])
        np.random.set_state(self.random_states[1])


class Rebuilder:
    """Builds one classifier after another, each equal to what `build_classifier` returns.

    Building a trunk and loading its weights takes seconds. While backbone, last stage, weights,
    preprocessing, size, seed and adapters stay the same, only the head is new, and the trunk's
    weights are restored. Use one classifier at a time: the next call reuses the layers of the one
    before.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._kept: _Kept | None = None

    def __call__(
        self,
        spec: ModelSpec,
        *,
        image_size: int,
        channels: int = COLOURS,
        task: Task,
        seed: int,
        adapters: Adapters | None = None,
    ) -> Classifier:
        """See `build_classifier`."""
        policy = keras.config.dtype_policy().name
        # Also the seed: random trunks depend on it, and so do heads, which are drawn after them.
        trunk = (spec.backbone, spec.last_stage, spec.weights, spec.preprocess)
        key = (*trunk, spec.channel_weights, image_size, channels, seed, policy, adapters)
        if self._kept is None or self._key != key:
            self._kept = None  # Free the old trunk first: two may not fit into memory.
            self._kept = _Kept.built(
                spec, image_size=image_size, channels=channels, seed=seed, adapters=adapters
            )
            self._key = key
        self._kept.restore()
        return put_head(spec, self._kept.inputs, self._kept.trunk, task=task, seed=seed)


def _variables(trunk: Trunk) -> list[keras.Variable]:
    return [v for layers in trunk.stages.values() for layer in layers for v in layer.variables]
