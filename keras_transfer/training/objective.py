"""What a phase optimises, as a training method prepares it.

Methods are in `keras_transfer.methods`, above this package: phases get them ready made.
"""

from dataclasses import dataclass
from typing import Protocol

import keras

from keras_transfer.data.datasets import Transform
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import PhaseSpec, RunSpec
from keras_transfer.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Objective:
    """What `fit` trains in one phase.

    Args:
        model: functional, over the classifier's own layers, from the phase's inputs to logits. A
            subclass of `keras.Model` may have a `compute_loss` of its own.
        loss: of encoded targets and logits.
        batch_transform: changes the batches that are trained on, never those of validation.
    """

    model: keras.Model
    loss: keras.losses.Loss
    batch_transform: Transform | None = None


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

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:
        """What to train; `part` of the classifier maps the phase's inputs to logits.

        What may train is not set yet.
        """

    def finish(self, model: keras.Model) -> None:
        """Bring the weights of the classifier's model into their final form after the phase.

        The phase is evaluated after that.
        """
