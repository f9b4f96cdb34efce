"""Alignment: features of labelled images and of images without labels become alike in training.

The loss of a batch is the task's on images with labels, the source, plus

    weight · distance(features of the source, features of as many images without labels)

Features are the inputs of the layer of logits. Source and target pass through the network one after
another, so that a BatchNormalization that trains never normalises one by statistics of both.
Distances are the covariances' (Deep CORAL), the mean discrepancy of Gaussian kernels (MMD), or what
a discriminator tells the domains by (DANN): its cross-entropy is added to the loss, and its
gradient reaches the features with the opposite sign, times weight · λ with

    λ = 2 / (1 + exp(-10 p)) - 1

where p is the share of the phase that has passed.

Sources: B. Sun and K. Saenko, "Deep CORAL", 2016. M. Long et al., "Learning transferable features
with deep adaptation networks", ICML 2015. Y. Ganin et al., "Domain-adversarial training of neural
networks", JMLR 2016.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

import keras
from keras import ops

from keras_transfer.adaptation.distances import covariance_distance, mean_discrepancy
from keras_transfer.backbones.graph import traced
from keras_transfer.devices.strategy import current, scope
from keras_transfer.errors import SpecError
from keras_transfer.fields import option
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec
from keras_transfer.training.objective import Objective, PhaseContext

Distance = Callable[[Any, Any], Any]
"""From features of the source and of the target, [B, D] each, to a scalar."""

DISTANCES: Final[dict[str, Distance]] = {"coral": covariance_distance, "mmd": mean_discrepancy}
ADVERSARIAL: Final = "adversarial"
WEIGHTS: Final = {"coral": 10.0, "mmd": 10.0, ADVERSARIAL: 0.1}
"""Weights by default, chosen on other shifts than those of `docs/benchmarks.md`."""
NUM_UNITS: Final = 64
"""Hidden units of the discriminator."""


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """Options of alignment."""

    distance: Literal["coral", "mmd", "adversarial"] = option(
        "mmd",
        "what is made small: the distance of covariances, the mean discrepancy of Gaussian "
        "kernels, or what a discriminator tells the domains by",
    )
    weight: float | None = option(
        None,
        "of the distance in the loss (none = 10 for mmd, 10 for coral, 0.1 for adversarial)",
        low=0,
        high=1e9,
    )


@dataclass(frozen=True)
class Align(MethodDefaults):
    """Trains on the task's loss of labelled images and on the distance to those without labels."""

    options: AlignOptions = field(default_factory=AlignOptions)

    Options: ClassVar = AlignOptions
    name: ClassVar[str] = "align"

    @property
    def uses_unlabelled(self) -> bool:
        """True: they are the target."""
        return True

    def check(self, spec: RunSpec, number: int) -> None:
        """Refuse specs without images of the target, and phases that train no features."""
        phase = spec.phases[number]
        if not spec.data.unlabelled:
            raise SpecError(
                f"phase {phase.name!r} has no images to align with",
                expected="data.unlabelled: a folder of images of the target, without labels",
                received="none",
                fix=f"give data.unlabelled, or set phases.{number}.method=supervised",
            )
        if phase.unfreeze == HEAD and spec.model.head == "linear":
            raise SpecError(
                f"phase {phase.name!r} trains no features that could be aligned",
                expected="a phase that unfreezes layers below a linear head",
                received=f"phases.{number}.unfreeze={HEAD}",
                fix=f"set phases.{number}.unfreeze=last",
            )

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:
        """The task's loss and the distance, of batches in pairs."""
        options, images = self.options, context.images
        num_target = len(images.train_rows) - images.num_labelled
        weight = WEIGHTS[options.distance] if options.weight is None else options.weight
        context.reporter.info(
            f"Phase {phase.name!r} aligns features with those of {num_target:,} images without "
            f"labels ({options.distance}, weight {weight:g}). Validation images are of the source, "
            "and so is all that is chosen by them."
        )
        model = _aligned(part)
        model.weight, callbacks = weight, []
        if options.distance == ADVERSARIAL:
            with scope():
                model.distance = Discriminator(seed=context.spec.seed)
                model.distance.build(model.both.output[1].shape)
            model.weight, callbacks = 1.0, [Ramp(model.distance, weight, phase.epochs)]
        else:
            model.distance = DISTANCES[options.distance]
        loss = context.task.loss(context.spec.training)
        return Objective(model, loss, callbacks=callbacks, pairs=True)


class AlignedModel(keras.Model):
    """A part of a classifier, trained on batches in which source and target take turns.

    `both` gives logits and features of the same layers.
    """

    both: keras.Model
    distance: Distance
    weight: float

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Logits; in training those of the source, and the features of source and target."""
        if not training:
            return super().call(inputs, training=training, mask=mask)
        logits, source = self.both(inputs[0::2], training=True)
        _, target = self.both(inputs[1::2], training=True)
        return logits, source, target

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The compiled loss; in training that of the source, and the weighted distance."""
        if not training:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        logits, source, target = y_pred
        own = None if sample_weight is None else sample_weight[0::2]
        loss = super().compute_loss(x, y[0::2], logits, own, training)
        return loss + self.weight * self.distance(source, target) / current().num_replicas

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The compiled metrics, of the source, and the loss."""
        if isinstance(y_pred, tuple):
            own = None if sample_weight is None else sample_weight[0::2]
            y, y_pred, sample_weight = y[0::2], y_pred[0], own
        return super().compute_metrics(x, y, y_pred, sample_weight)


def _aligned(part: keras.Model) -> AlignedModel:
    graph, calls = traced(part)
    dense = [call for call in calls if isinstance(call.operation, keras.layers.Dense)]
    features = ops.cast(dense[-1].reads[0], "float32")
    model = AlignedModel(part.input, part.output, name=part.name)
    model.both = keras.Model(graph.inputs[0], [graph.outputs[0], features])
    return model


class Discriminator(keras.layers.Layer):
    """Tells source from target by features, whose gradient it turns round.

    `strength` is the factor of the gradient that reaches the features.
    """

    def __init__(self, *, seed: int):
        super().__init__(name="discriminator", dtype="float32")
        initial = [keras.initializers.GlorotUniform(seed + number) for number in range(2)]
        self.hidden = keras.layers.Dense(
            NUM_UNITS, "relu", kernel_initializer=initial[0], dtype="float32", name="hidden"
        )
        self.logit = keras.layers.Dense(
            1, kernel_initializer=initial[1], dtype="float32", name="logit"
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the variables, for features [B, D]."""
        self.strength = self.add_weight(name="strength", initializer="zeros", trainable=False)
        self.hidden.build(input_shape)
        self.logit.build((None, NUM_UNITS))
        self.built = True

    def call(self, source: Any, target: Any) -> Any:
        """The mean cross-entropy of the domains, 1 for the source: a scalar."""
        features = reverse_gradient(ops.concatenate([source, target]), self.strength)
        logits = self.logit(self.hidden(features))[:, 0]
        size = ops.shape(source)[0]
        losses = ops.softplus(-logits[:size]), ops.softplus(logits[size:])
        return ops.mean(ops.concatenate(losses))


def reverse_gradient(values: Any, strength: Any) -> Any:
    """The same values, whose gradient is multiplied by -strength."""
    return -strength * values + ops.stop_gradient(values + strength * values)


def ramp(progress: float) -> float:
    """λ, from 0 at the start of a phase, progress 0, to almost 1 at its end, progress 1."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


class Ramp(keras.callbacks.Callback):
    """Sets the strength of a discriminator for each epoch to that in its middle."""

    def __init__(self, discriminator: Discriminator, weight: float, epochs: int):
        super().__init__()
        self.discriminator, self.weight, self.epochs = discriminator, weight, epochs

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Epochs count from 0 within the phase, also in one that is resumed."""
        self.discriminator.strength.assign(self.weight * ramp((epoch + 0.5) / self.epochs))
