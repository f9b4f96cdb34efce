"""One phase: freeze and unfreeze layers, compile, fit, and restore the best weights.

Keras's `fit` trains; there is no training loop here. An interrupted phase resumes after its last
finished epoch with the same order, views, dropout, optimizer state and learning rate.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import keras

from keras_transfer.devices.memory import is_out_of_memory
from keras_transfer.devices.strategy import current, largest_part, scope
from keras_transfer.errors import OutOfMemoryError
from keras_transfer.models.classifier import Classifier
from keras_transfer.specs import HEAD, PhaseSpec, TrainingSpec
from keras_transfer.training.averages import Averages
from keras_transfer.training.objective import Shares, Trains
from keras_transfer.training.optimizers import make_optimizer
from keras_transfer.training.progress import Progress, Saver
from keras_transfer.training.projection import ProjectedModel


class PhaseData(Protocol):
    """The training and validation data of a phase."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""

    @property
    def batch_size(self) -> int:
        """Examples per optimizer step, over all devices."""

    def training(self, epochs: range, num_parts: int) -> Any:
        """Batches (inputs, encoded targets, weights) of these epochs, each in `num_parts` parts."""

    def validation(self, num_parts: int) -> Any:
        """Batches (inputs, encoded targets, weights) in fixed order, each in `num_parts` parts.

        None where the validation split is empty.
        """


@dataclass(frozen=True)
class PhaseResult:
    """The result of `train_phase`. `history` has a row per epoch; `best_epoch` counts from 1."""

    name: str
    epochs: int
    best_epoch: int
    seconds: float
    num_trainable: int
    history: tuple[dict[str, float], ...]
    is_finished: bool

    @property
    def best_row(self) -> dict[str, float]:
        """The history's row of the best epoch."""
        return self.history[self.best_epoch - 1]


def apply_phase(classifier: Classifier, phase: PhaseSpec, *, trains: Trains | None = None) -> int:
    """Set `trainable` of all layers for this phase; returns the number of trainable parameters.

    BatchNormalization stays frozen in every trunk stage unless the phase sets `train_batchnorm`: a
    layer whose `trainable` is False runs in inference mode, which `training=False` at call time
    does not achieve under `fit`. With `trains` it says which layers of unfrozen trunk stages train.
    Takes effect at the next `compile`.

    Raises:
        SpecError: the model has no stage called `phase.unfreeze`.
    """
    unfrozen = set(classifier.from_stage(phase.unfreeze))
    for stage, layers in classifier.stages.items():
        for layer in layers:
            if trains and stage != HEAD:
                is_chosen = trains(layer)
            else:
                is_chosen = phase.train_batchnorm or not is_batchnorm(layer)
            layer.trainable = stage in unfrozen and is_chosen
    return sum(math.prod(v.shape) for v in classifier.model.trainable_variables)


def is_batchnorm(layer: keras.layers.Layer) -> bool:
    """Whether it is a BatchNormalization."""
    return isinstance(layer, keras.layers.BatchNormalization)


def compile_phase(
    classifier: Classifier,
    phase: PhaseSpec,
    *,
    steps_per_epoch: int,
    loss: keras.losses.Loss,
    part: keras.Model | None = None,
    num_parts: int = 1,
    shares: Mapping[str, float] | None = None,
    average_epochs: float = 0.0,
) -> None:
    """Compile for one phase with a new optimizer, because an old one cannot change its variables.

    `loss` is a function of encoded targets and logits. `part` is compiled instead of the classifier
    where the phase trains only that part of the graph. A step accumulates the gradients of
    `num_parts` parts of a batch. `shares` and `average_epochs` are as for `make_optimizer`.
    """
    model = part or classifier.model
    with scope():
        model.compile(
            optimizer=make_optimizer(
                phase,
                classifier,
                steps_per_epoch=steps_per_epoch,
                num_parts=num_parts,
                shares=shares,
                average_epochs=average_epochs,
            ),
            loss=loss,
            weighted_metrics=classifier.task.metrics(),
            jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
        )
        # Otherwise the first step would create variables inside the graph: TensorFlow then traces
        # that graph twice, and never frees some of its memory.
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
    least_epochs: int = 0,
    trains: Trains | None = None,
    shares: Shares | None = None,
    average_epochs: float = 0.0,
    say: Callable[[str], None] = lambda _: None,
) -> PhaseResult:
    """Train one phase and leave the classifier at the phase's best validation epoch.

    The best epoch has the best value of the task's monitored metric, then the lowest loss; without
    validation data it is the last one.

    Args:
        part: the part of the classifier, over its own layers, that maps `data` to logits; None
            for all of it.
        loss: of encoded targets and logits; None for the task's own with default settings.
        num_epochs: stop after this many of the phase's epochs, without changing its schedule; None
            trains all of them.
        saver: saves the state and returns that of an interrupted phase.
        save_seconds: least time between two saves; 0 saves after every epoch.
        num_parts: number of parts of a batch that the devices process one after another.
        callbacks: of the method and for display; they count epochs from 0 within the phase.
        least_epochs: no epoch before this many is the best one.
        trains: as for `apply_phase`.
        shares, average_epochs: as for `Objective`.
        say: called with a message when memory runs out.

    Raises:
        OutOfMemoryError: memory runs out on the smallest part of a batch that devices can share.
        DivergedError: the loss is no longer finite.
    """
    started = time.perf_counter()
    num_trainable = apply_phase(classifier, phase, trains=trains)
    loss = loss or classifier.task.loss(TrainingSpec())
    model = _with_variables(part or classifier.model, loss, classifier)
    progress = Progress(classifier, phase, model, saver=saver, save_seconds=save_seconds)
    progress.num_parts, progress.least_epochs = num_parts, least_epochs
    progress.load()
    compiling = partial(
        compile_phase,
        classifier,
        phase,
        part=model,
        steps_per_epoch=data.steps_per_epoch,
        loss=loss,
        shares=shares(model, data.training(range(1), progress.num_parts)) if shares else None,
        average_epochs=average_epochs,
    )
    watching = [*([Averages()] if average_epochs else []), progress, *callbacks]
    last = min(phase.epochs, num_epochs or phase.epochs)

    def fit() -> None:
        compiling(num_parts=progress.num_parts)
        first = progress.resume()
        if not progress.stopped and first < last:
            model.fit(
                data.training(range(first, last), progress.num_parts),
                validation_data=data.validation(progress.num_parts),
                steps_per_epoch=data.steps_per_epoch * progress.num_parts,
                initial_epoch=first,
                epochs=last,
                callbacks=watching,
                shuffle=False,
                verbose=0,
            )

    with scope():
        _in_memory(fit, progress, data.batch_size, say)
        progress.restore_best()
    seconds = progress.seconds_before + time.perf_counter() - started
    return _result(progress, seconds=seconds, num_trainable=num_trainable)


def _with_variables(
    model: keras.Model, loss: keras.losses.Loss, classifier: Classifier
) -> keras.Model:
    """A model whose variables include those of the loss, if it has a `layer` that trains.

    The classifier's own model must not contain them: it is saved. For a loss that `projects` it is
    one with a training step for that.
    """
    layer = getattr(loss, "layer", None)
    if getattr(loss, "projects", False):
        model = ProjectedModel(model.input, model.output, name=model.name)
        model.separate, model.own = loss.separate, classifier.last_dense
    if layer is None:
        return model
    if model is classifier.model:
        model = keras.Model(model.input, model.output, name=model.name)
    model.loss_layer = layer
    return model


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
    """Fit; if memory runs out, go back to the end of the last epoch and use smaller parts.

    It cannot go back to the last step, because a failed step may have changed some variables.
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
                f"Memory ran out on {at_once} images at once: phase {progress.phase.name!r} "
                f"continues after its epoch {len(progress.history)} with {smaller} at once. "
                f"Gradients are accumulated, so a step still has {batch_size} images."
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
