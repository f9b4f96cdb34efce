"""One phase: set what may change, compile, fit, and end on the best weights.

`fit` trains; nothing here is a training loop. A phase that is interrupted goes on from its last
finished epoch with the same order, views, dropout, optimizer state and learning rate.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras

from keras_transfer.devices.memory import is_out_of_memory
from keras_transfer.devices.strategy import current, largest_part, scope
from keras_transfer.errors import OutOfMemoryError
from keras_transfer.models.classifier import Classifier
from keras_transfer.specs import PhaseSpec, TrainingSpec
from keras_transfer.training.optimizers import make_optimizer
from keras_transfer.training.progress import Progress, Saver


class PhaseData(Protocol):
    """What a phase trains and validates on."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""

    @property
    def batch_size(self) -> int:
        """Examples of an optimizer step, over all devices."""

    def training(self, epochs: range, num_parts: int) -> Any:
        """Batches (inputs, encoded targets, weights) of these epochs, each in so many parts."""

    def validation(self, num_parts: int) -> Any:
        """Batches (inputs, encoded targets, weights) in a fixed order, of the size of the parts."""


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
    loss: keras.losses.Loss,
    part: keras.Model | None = None,
    num_parts: int = 1,
) -> None:
    """Compile for one phase, with a new optimizer: an old one cannot take other variables.

    `loss` is of encoded targets and logits. `part` is compiled in the classifier's place where the
    phase does not train all of its graph. A step gathers the gradients of `num_parts` parts of a
    batch.
    """
    model = part or classifier.model
    with scope():
        model.compile(
            optimizer=make_optimizer(
                phase, classifier, steps_per_epoch=steps_per_epoch, num_parts=num_parts
            ),
            loss=loss,
            weighted_metrics=classifier.task.metrics(),
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
    loss: keras.losses.Loss | None = None,
    num_epochs: int | None = None,
    saver: Saver | None = None,
    save_seconds: float = 0.0,
    num_parts: int = 1,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    say: Callable[[str], None] = lambda _: None,
) -> PhaseResult:
    """Train one phase and leave the classifier at the phase's best validation epoch.

    The best epoch has the best value of the task's monitor; ties go to the lower loss.

    Args:
        part: the part of the classifier, over its own layers, that maps `data` to logits; None
            for all of it.
        loss: of encoded targets and logits; None for the task's own with default settings.
        num_epochs: stop after this many of the phase's epochs, its schedule left as it is; None
            trains them all.
        saver: keeps the state and hands back that of an interrupted phase.
        save_seconds: between two saves at least; 0 saves after every epoch.
        num_parts: into which a batch is cut for the devices to take one after another.
        callbacks: for display; they see epochs counted from 0 within the phase.
        say: called with a sentence where memory ran out.

    Raises:
        OutOfMemoryError: memory runs out on the smallest part of a batch that devices can share.
        DivergedError: the loss is no longer finite.
    """
    started = time.perf_counter()
    num_trainable = apply_phase(classifier, phase)
    model = part or classifier.model
    loss = loss or classifier.task.loss(TrainingSpec())
    progress = Progress(classifier, phase, model, saver=saver, save_seconds=save_seconds)
    progress.num_parts = num_parts
    progress.load()
    last = min(phase.epochs, num_epochs or phase.epochs)

    def fit() -> None:
        compile_phase(
            classifier,
            phase,
            part=model,
            steps_per_epoch=data.steps_per_epoch,
            loss=loss,
            num_parts=progress.num_parts,
        )
        first = progress.resume()
        if not progress.stopped and first < last:
            model.fit(
                data.training(range(first, last), progress.num_parts),
                validation_data=data.validation(progress.num_parts),
                steps_per_epoch=data.steps_per_epoch * progress.num_parts,
                initial_epoch=first,
                epochs=last,
                callbacks=[progress, *callbacks],
                shuffle=False,
                verbose=0,
            )

    with scope():
        _in_memory(fit, progress, data.batch_size, say)
        progress.restore_best()
    seconds = progress.seconds_before + time.perf_counter() - started
    return _result(progress, seconds=seconds, num_trainable=num_trainable)


def _result(progress: Progress, *, seconds: float, num_trainable: int) -> PhaseResult:
    return PhaseResult(
        name=progress.phase.name,
        epochs=len(progress.history),
        best_epoch=progress.best_epoch + 1,
        seconds=seconds,
        num_trainable=num_trainable,
        history=tuple(progress.history),
        is_finished=progress.stopped or len(progress.history) == progress.phase.epochs,
    )


def _in_memory(
    fit: Callable[[], None], progress: Progress, batch_size: int, say: Callable[[str], None]
) -> None:
    """Fit, and where memory runs out, go back to the last epoch's end with smaller parts.

    Not to the last step: what a step had changed when it failed is not known.
    """
    while True:
        try:
            fit()
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            at_once = batch_size // progress.num_parts
            smaller = largest_part(batch_size, current().num_devices, at_once // 2)
            if not smaller or current().num_hosts > 1 or current().strategy == "mirrored":
                raise _too_little(at_once, batch_size) from error
            progress.num_parts = batch_size // smaller
            say(
                f"Memory ran out on {at_once} images at once: phase {progress.phase.name!r} goes "
                f"on from the end of its epoch {len(progress.history)} with {smaller}, gathering "
                f"gradients, so that a step still sees {batch_size}."
            )


def _too_little(at_once: int, batch_size: int) -> OutOfMemoryError:
    devices = current()
    if devices.strategy == "mirrored":
        fix = "lower training.batch_size"
    elif devices.num_hosts > 1:
        fix = f"set devices.batch_size to a divisor of {batch_size} below {at_once}"
    else:
        fix = "lower data.image_size, or choose a smaller model.backbone or a higher unfreeze"
    return OutOfMemoryError(
        f"memory runs out on {at_once} images at once",
        expected=f"room for them on {devices.num_devices} of kind {devices.kind}",
        received="too little",
        fix=fix,
    )
