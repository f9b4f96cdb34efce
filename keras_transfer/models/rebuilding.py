"""Many classifiers over one trunk: the trunk is built once and gets its first weights back."""

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_transfer.backbones.record import Trunk
from keras_transfer.models.classifier import Classifier, put_head, put_trunk
from keras_transfer.specs import ModelSpec


@dataclass(frozen=True, eq=False)
class _Kept:
    """A trunk on its input as it was built, and where the random numbers then stood."""

    inputs: keras.KerasTensor
    trunk: Trunk
    weights: list[np.ndarray]
    random_states: tuple[Any, Any]

    @classmethod
    def built(cls, spec: ModelSpec, *, image_size: int, seed: int) -> "_Kept":
        inputs, trunk = put_trunk(spec, image_size=image_size, seed=seed)
        states = random.getstate(), np.random.get_state()
        return cls(inputs, trunk, [np.array(v) for v in _variables(trunk)], states)

    def restore(self) -> None:
        """Back to how it was, for the trunk and for whoever draws the next random number."""
        for variable, value in zip(_variables(self.trunk), self.weights, strict=True):
            # Looking is quicker than writing, and most trainings leave most of the trunk as it is.
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
    size and seed stay the same, only the head is new, and whatever trained in the trunk is set
    back. Use one classifier at a time: the next call takes the weights of the one before.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._kept: _Kept | None = None

    def __call__(
        self, spec: ModelSpec, *, image_size: int, class_names: Sequence[str], seed: int
    ) -> Classifier:
        """See `build_classifier`."""
        policy = keras.config.dtype_policy().name
        # The seed too: random trunks depend on it, and so does a head, which is drawn after them.
        key = (spec.backbone, spec.last_stage, spec.weights, image_size, seed, policy)
        if self._kept is None or self._key != key:
            self._kept = None  # Two trunks need not fit into memory.
            self._kept = _Kept.built(spec, image_size=image_size, seed=seed)
            self._key = key
        self._kept.restore()
        return put_head(
            spec, self._kept.inputs, self._kept.trunk, class_names=class_names, seed=seed
        )


def _variables(trunk: Trunk) -> list[keras.Variable]:
    return [v for layers in trunk.stages.values() for layer in layers for v in layer.variables]
