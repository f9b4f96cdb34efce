"""One phase: set what may change, compile, fit, and end on the best weights.

`fit` trains; nothing here is a training loop. A phase that is interrupted goes on from its last
finished epoch with the same order, views, dropout, optimizer state and learning rate.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras

from keras_transfer.devices.strategy import scope
from keras_transfer.models.classifier import Classifier
from keras_transfer.specs import PhaseSpec
from keras_transfer.training.accuracy import Accuracy
from keras_transfer.training.optimizers import make_optimizer
from keras_transfer.training.progress import Progress, Saver


class PhaseData(Protocol):
    """What a phase trains and validates on."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""

    def training(self, first_epoch: int, last_epoch: int) -> Any:
        """Batches (inputs, one-hot labels, weights) of epochs first to last - 1, in one stream."""

    def validation(self) -> Any:
        """Batches (inputs, one-hot labels, weights) in a fixed order."""


@dataclass(frozen=True)
class PhaseResult:
    """What one phase did. `history` has a row an epoch; `best_epoch` counts from 1."""

    name: str
    epochs: int
    best_epoch: int
    seconds: float
    num_trainable: int
    history: tuple[dict[str, float], ...]
    is_finished: bool


def apply_phase(classifier: Classifier, phase: PhaseSpec) -> int:
    """Mark what may train in this phase and return the number of trainable parameters.

    BatchNormalization stays frozen in every trunk stage unless the phase says otherwise: a layer
    whose `trainable` is False runs in inference mode, which `training=False` at call time does
    not achieve under `fit`. Takes effect at the next `compile`.

    Raises:
        SpecError: the model has no stage called `phase.unfreeze`.
    """
    unfrozen = set(classifier.from_stage(phase.unfreeze))
    for stage, layers in classifier.stages.items():
        for layer in layers:
            frozen_norm = not phase.train_batchnorm and _is_batchnorm(layer)
            layer.trainable = stage in unfrozen and not frozen_norm
    return sum(math.prod(v.shape) for v in classifier.model.trainable_variables)


def _is_batchnorm(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def compile_phase(
    classifier: Classifier,
    phase: PhaseSpec,
    *,
    steps_per_epoch: int,
    part: keras.Model | None = None,
    label_smoothing: float = 0.0,
) -> None:
    """Compile for one phase, with a new optimizer: an old one cannot take other variables.

    `part` is compiled in the classifier's place where the phase does not train all of its graph.
    """
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)
    model = part or classifier.model
    with scope():
        model.compile(
            optimizer=make_optimizer(phase, classifier, steps_per_epoch=steps_per_epoch),
            loss=loss,
            weighted_metrics=[Accuracy(name="accuracy")],
            jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
        )
        # In its first step it would create variables inside the graph: TensorFlow then traces
        # that graph twice, and keeps something of it for good.
        model.optimizer.build(model.trainable_variables)


def train_phase(
    classifier: Classifier,
    phase: PhaseSpec,
    data: PhaseData,
    *,
    part: keras.Model | None = None,
    label_smoothing: float = 0.0,
    num_epochs: int | None = None,
    saver: Saver | None = None,
    save_seconds: float = 0.0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> PhaseResult:
    """Train one phase and leave the classifier at the phase's best validation epoch.

    The best epoch has the highest validation accuracy; ties go to the lower loss.

    Args:
        part: the part of the classifier, over its own layers, that maps `data` to logits; None
            for all of it.
        num_epochs: stop after this many of the phase's epochs, its schedule left as it is; None
            trains them all.
        saver: keeps the state and hands back that of an interrupted phase.
        save_seconds: between two saves at least; 0 saves after every epoch.
        callbacks: for display; they see epochs counted from 0 within the phase.
    """
    started = time.perf_counter()
    num_trainable = apply_phase(classifier, phase)
    model = part or classifier.model
    compile_phase(
        classifier,
        phase,
        part=model,
        steps_per_epoch=data.steps_per_epoch,
        label_smoothing=label_smoothing,
    )
    progress = Progress(classifier, phase, model, saver=saver, save_seconds=save_seconds)
    with scope():
        first, last = progress.resume(), min(phase.epochs, num_epochs or phase.epochs)
        if not progress.stopped and first < last:
            model.fit(
                data.training(first, last),
                validation_data=data.validation(),
                steps_per_epoch=data.steps_per_epoch,
                initial_epoch=first,
                epochs=last,
                callbacks=[progress, *callbacks],
                shuffle=False,
                verbose=0,
            )
        progress.restore_best()
    return PhaseResult(
        name=phase.name,
        epochs=len(progress.history),
        best_epoch=progress.best_epoch + 1,
        seconds=progress.seconds_before + time.perf_counter() - started,
        num_trainable=num_trainable,
        history=tuple(progress.history),
        is_finished=progress.stopped or len(progress.history) == phase.epochs,
    )
