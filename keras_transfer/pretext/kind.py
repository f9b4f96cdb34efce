"""The interface of a pretext task, and the data of its phase.

A new one is one module with one class and one row in `pretext.registry`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import keras
import numpy as np

from keras_transfer.data.datasets import (
    Batching,
    Encode,
    Examples,
    Inputs,
    evaluation_dataset,
    steps_per_epoch,
    training_dataset,
)
from keras_transfer.devices.strategy import current
from keras_transfer.models.classifier import Classifier
from keras_transfer.specs import RunSpec
from keras_transfer.training.phases import PhaseResult


@dataclass(frozen=True, eq=False)
class UnlabelledImages:
    """Decoded images without labels, and the rows that are trained on and that measure it.

    The other rows are not looked at.
    """

    examples: Examples
    train: np.ndarray
    val: np.ndarray


@dataclass(frozen=True, eq=False)
class PretextData:
    """The data of a pretraining phase.

    `inputs` give what the network reads of a row, `examples` have the targets and ids of the same
    rows, and `encode` turns these targets into those of the loss. Without `val` there is no
    validation.
    """

    spec: RunSpec
    examples: Examples
    inputs: Inputs
    encode: Encode
    train: np.ndarray
    val: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def batch_size(self) -> int:
        """Rows of an optimizer step, over all devices."""
        return self.spec.training.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return steps_per_epoch(len(self.train), self.batch_size)

    def training(self, epochs: range, num_parts: int = 1) -> Any:
        """Batches of these epochs, each in so many parts; see `training_dataset`."""
        return training_dataset(
            self.examples,
            self.train,
            self.inputs,
            num_views=self.spec.views.count,
            batching=self._batching(num_parts),
            seed=self.spec.seed,
            epochs=epochs,
            encode=self.encode,
        )

    def validation(self, num_parts: int = 1) -> Any:
        """Plain batches of the rows that measure it; None where there are none."""
        if not len(self.val):
            return None
        batching = self._batching(num_parts)
        return evaluation_dataset(
            self.examples, self.val, self.inputs, batching=batching, encode=self.encode
        )

    def _batching(self, num_parts: int) -> Batching:
        devices = current()
        return Batching(
            size=self.batch_size,
            num_parts=num_parts,
            num_devices=devices.num_devices,
            host=devices.host,
            num_hosts=devices.num_hosts,
        )


@dataclass(frozen=True, eq=False)
class Pretext:
    """What a phase trains: `model`, over the layers of the classifier's trunk, on `data`.

    The classifier's head is not kept.
    """

    classifier: Classifier
    model: keras.Model
    loss: keras.losses.Loss
    data: PretextData


@dataclass(frozen=True)
class Measured:
    """How well the pretext task was learned: figures by name, and a sentence about them."""

    figures: Mapping[str, float]
    sentence: str


class Kind(Protocol):
    """A pretext task."""

    @property
    def name(self) -> str:
        """The row of the registry."""

    def check(self, spec: RunSpec) -> None:
        """Raise SpecError where other fields contradict it, before anything is read."""

    def prepare(self, images: UnlabelledImages, spec: RunSpec) -> Pretext:
        """The network with the trunk of `spec.model`, and what it is trained on.

        Raises:
            SpecError, WeightsError: the trunk cannot be built.
        """

    def measure(self, pretext: Pretext, images: UnlabelledImages, result: PhaseResult) -> Measured:
        """Figures of the trained network on the images that were not trained on."""
