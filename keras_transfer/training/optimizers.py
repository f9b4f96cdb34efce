"""Optimizers of a phase: schedule, weight decay and one learning rate per stage."""

import math
from collections.abc import Mapping
from typing import Any

import keras

from keras_transfer.models.classifier import Classifier
from keras_transfer.specs import PhaseSpec

UNDECAYED = ("bias", "gamma", "beta")
"""Variables without weight decay: shrinking a scale or an offset does not regularise."""


def stage_rates(
    phase: PhaseSpec, classifier: Classifier, shares: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Peak learning rate of every stage that trains, bottom to top.

    The head trains at `learning_rate`, each stage below at `layer_decay` times the one above; with
    `shares` each stage at its share of `learning_rate`.
    """
    if shares is not None:
        return {name: phase.learning_rate * share for name, share in shares.items()}
    names = classifier.from_stage(phase.unfreeze)
    depth = {name: len(names) - 1 - number for number, name in enumerate(names)}
    return {name: phase.learning_rate * phase.layer_decay ** depth[name] for name in names}


def make_schedule(
    rate: float, phase: PhaseSpec, *, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up to `rate`, then a half cosine to 0 at the phase's end, or constant."""
    warmup_steps = round(min(phase.warmup_epochs, phase.epochs) * steps_per_epoch)
    decay_steps = max(1, phase.epochs * steps_per_epoch - warmup_steps)
    # A floor of 1 turns the cosine into a constant.
    floor = 0.0 if phase.schedule == "cosine" else 1.0
    if warmup_steps == 0:
        return keras.optimizers.schedules.CosineDecay(rate, decay_steps, alpha=floor)
    # Starts at rate / warmup_steps, not at 0, where the first step would change nothing.
    return keras.optimizers.schedules.CosineDecay(
        rate / warmup_steps, decay_steps, alpha=floor, warmup_target=rate, warmup_steps=warmup_steps
    )


@keras.saving.register_keras_serializable("keras_transfer")
class PerStep(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of optimizer steps, for an optimizer that accumulates the gradients of batches.

    Keras passes the number of batches to a schedule, not that of optimizer steps.
    """

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, num_batches: int):
        self.schedule, self.num_batches = schedule, num_batches

    def __call__(self, step: Any) -> Any:
        """The rate at a batch, counted from 0."""
        return self.schedule(keras.ops.floor_divide(step, self.num_batches))

    def get_config(self) -> dict[str, Any]:
        """Both arguments."""
        return {"schedule": self.schedule, "num_batches": self.num_batches}


def make_optimizer(
    phase: PhaseSpec,
    classifier: Classifier,
    *,
    steps_per_epoch: int,
    num_parts: int = 1,
    shares: Mapping[str, float] | None = None,
    average_epochs: float = 0.0,
) -> keras.optimizers.Optimizer:
    """An optimizer for the variables that are trainable now; call it after `apply_phase`.

    A step accumulates the gradients of `num_parts` equal parts of a batch; their mean is the
    gradient of the batch.

    With `layer_decay` below 1 or `shares` it is a `MultiOptimizer` with one optimizer per stage. It
    maps exact variable paths, because its patterns must not overlap. With `average_epochs` it keeps
    a moving average of the weights over so many epochs.
    """
    rates = stage_rates(phase, classifier, shares)
    # Keras updates averages after each part of a batch.
    num_batches = average_epochs * steps_per_epoch * num_parts
    momentum = math.exp(-1 / num_batches) if num_batches else None

    def single(rate: float) -> keras.optimizers.Optimizer:
        return _single(phase, rate, steps_per_epoch, num_parts, momentum)

    if shares is None and (phase.layer_decay == 1.0 or len(rates) == 1):
        return single(phase.learning_rate)
    optimizers = {stage: single(rate) for stage, rate in rates.items()}
    by_path = {
        variable.path: optimizers[stage]
        for stage in rates
        for layer in classifier.stages[stage]
        for variable in layer.trainable_variables
    }
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(list(optimizers.values())[-1], by_path)
    )


def _single(
    phase: PhaseSpec, rate: float, steps_per_epoch: int, num_parts: int, momentum: float | None
) -> keras.optimizers.Optimizer:
    schedule = make_schedule(rate, phase, steps_per_epoch=steps_per_epoch)
    decay = phase.weight_decay or None
    settings: dict[str, Any] = {"learning_rate": schedule, "weight_decay": decay}
    if num_parts > 1:
        settings["learning_rate"] = PerStep(schedule, num_parts)
        settings["gradient_accumulation_steps"] = num_parts
    if momentum is not None:
        settings |= {"use_ema": True, "ema_momentum": momentum}
    if phase.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(momentum=0.9, **settings)
    elif phase.optimizer == "adam":
        optimizer = keras.optimizers.Adam(**settings)
    else:
        optimizer = keras.optimizers.AdamW(**{**settings, "weight_decay": phase.weight_decay})
    if decay:
        optimizer.exclude_from_weight_decay(var_names=list(UNDECAYED))
    return optimizer
