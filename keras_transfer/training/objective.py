"""What a phase optimises, as a training method prepares it.

Methods are in `keras_transfer.methods`, above this package: phases get them ready made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import keras
import numpy as np

from keras_transfer.data.datasets import Transform
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import PhaseSpec, RunSpec
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead
from keras_transfer.tasks.task import Task

Solve = Callable[[HeadFeatures, np.ndarray], LinearHead | None]
"""From features of N examples and their target values [N, …] to the best head."""


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
    """

    model: keras.Model
    loss: keras.losses.Loss
    batch_transform: Transform | None = None
    solve: Solve | None = None
    fits: bool = True


@dataclass(frozen=True, eq=False)
class PhaseContext:
    """What a method may know of the run when a phase starts.

    `on_features` says whether the phase reads stored features, and not images.
    """

    spec: RunSpec
    task: Task
    on_features: bool
    reporter: Reporter


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

    def num_views(self, phase: PhaseSpec, available: int) -> int:
        """How many of the `available` views of a training image the phase reads."""

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:
        """What to train; `part` of the classifier maps the phase's inputs to logits.

        What may train is not set yet.
        """

    def finish(self, model: keras.Model) -> None:
        """Bring the weights of the classifier's model into their final form after the phase.

        The phase is evaluated after that.
        """
