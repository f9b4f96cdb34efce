"""What a phase optimises, as a training method prepares it.

Methods are in `keras_transfer.methods`, above this package: phases get them ready made.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import keras
import numpy as np

from keras_transfer.backbones.adapters import Adapters
from keras_transfer.data.datasets import Inputs, Transform
from keras_transfer.models.cuts import Cut
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead
from keras_transfer.tasks.task import Task

Solve = Callable[[HeadFeatures, np.ndarray], LinearHead | None]
"""From features of N examples and their target values [N, …] to the best head."""

Trains = Callable[[keras.layers.Layer], bool]
"""Whether a layer of an unfrozen stage trains."""


Shares = Callable[[keras.Model, Iterable[Any]], Mapping[str, float]]
"""From the model to fit and batches (inputs, encoded targets, weights) to the learning rate of each
stage that trains, as a share of the phase's. Called before the first epoch, with the same weights
where a phase is resumed."""


@dataclass(frozen=True, eq=False)
class Objective:
    """What one phase optimises, by Keras's `fit` or by solving the head.

    Args:
        model: functional, over the classifier's own layers, from the phase's inputs to logits. A
            subclass of `keras.Model` may have a `compute_loss` of its own.
        loss: of encoded targets and logits.
        batch_transform: changes the batches that are trained on, never those of validation.
        solve: gives the weights of the last layer; None leaves them as they are, and where it
            returns None they are trained by `fit`.
        fits: whether `fit` trains after the head was solved.
        columns: float32 [E] of every view that is trained on, put behind its encoded target. `loss`
            and the metrics of `model` get them there; those of validation have none.
        callbacks: called while `fit` trains.
        least_epochs: epochs after which the weights have their final form. Earlier ones are not
            chosen, and such a phase is neither undone nor averaged with the weights before it; 0
            for phases whose weights have it at once.
        privacy: what a solved head with differential privacy guarantees, as JSON values.
        trains: of each layer of the trunk's unfrozen stages whether it trains; None for the rule of
            `apply_phase`.
        decays: whether the phase's weight decay applies; False where `model` penalises weights.
        shares: of the learning rate for each stage, in place of the phase's `layer_decay`.
        average_epochs: epochs that a moving average of the weights covers, which stands in place of
            them after each epoch; 0 for none.
        pairs: whether an image without a label follows each image with one in the batches that are
            trained on, of which `model` then gets twice as many, and trains on no other way.
    """

    model: keras.Model
    loss: keras.losses.Loss
    batch_transform: Transform | None = None
    solve: Solve | None = None
    fits: bool = True
    columns: Inputs | None = None
    callbacks: Sequence[keras.callbacks.Callback] = ()
    least_epochs: int = 0
    privacy: dict[str, Any] | None = None
    trains: Trains | None = None
    decays: bool = True
    shares: Shares | None = None
    average_epochs: float = 0.0
    pairs: bool = False


class PhaseImages(Protocol):
    """The images that a phase trains on, for methods that show them to another network."""

    @property
    def train_rows(self) -> np.ndarray:
        """Rows of the source that train, int64 [N]; those without labels come last."""

    @property
    def train_values(self) -> np.ndarray:
        """Target values [N, …] of the training rows that have labels."""

    @property
    def num_labelled(self) -> int:
        """How many of the training rows have labels."""

    @property
    def num_views(self) -> int | None:
        """Views of each image that the phase reads; None is a new one in every epoch."""

    @property
    def test_digests(self) -> Sequence[str]:
        """SHA-256 of the files in the test split."""

    def read_frozen(self, cuts: Sequence[Cut], image_size: int) -> Sequence[Inputs]:
        """Stored activations of another network at some cuts, of all views that train.

        Args:
            image_size: side of the images that the network reads; the views are the same.
        """


@dataclass(frozen=True, eq=False)
class PhaseContext:
    """What a method may know of the run when a phase starts.

    `on_features` says whether the phase reads stored features, and not images. `stages` has the
    classifier's layers by stage, from the bottom to 'head', `added` the names of those that
    methods added to the trunk.
    """

    spec: RunSpec
    task: Task
    on_features: bool
    reporter: Reporter
    images: PhaseImages
    stages: Mapping[str, Sequence[keras.layers.Layer]] = field(default_factory=dict)
    added: Sequence[str] = ()

    @property
    def head(self) -> Sequence[keras.layers.Layer]:
        """The layers above the trunk."""
        return self.stages.get(HEAD, ())


class PhaseMethod(Protocol):
    """How one phase trains."""

    @property
    def name(self) -> str:
        """The row of the registry."""

    @property
    def needs_images(self) -> bool:
        """Whether the phase has to train on images, even where its features could be stored.

        Known before any phase starts: one pass over the images serves several phases.
        """

    @property
    def uses_unlabelled(self) -> bool:
        """Whether the phase also trains on the images in `data.unlabelled`."""

    def num_views(self, phase: PhaseSpec, available: int) -> int:
        """How many of the `available` views of a training image the phase reads."""

    def adapters(self, phase: PhaseSpec, number: int) -> Adapters | None:
        """The layers that phase `number` of a spec adds to the trunk.

        The network has them before the first phase starts, with the outputs that it has without.
        """

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:
        """What to train; `part` of the classifier maps the phase's inputs to logits.

        What may train is not set yet.
        """

    def finish(self, model: keras.Model) -> None:
        """Bring the weights of the classifier's model into their final form after the phase.

        The phase is evaluated after that.
        """
