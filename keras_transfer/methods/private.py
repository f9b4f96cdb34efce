"""A linear head with differential privacy: it hardly depends on any single training image.

Two steps look at the images, and noise is added to each. It is drawn with a random key of the
operating system, which is stored nowhere.

1. The mean of the features f [D], each shortened to a norm of at most sqrt(D), is subtracted, so
   that the norms below are about what differs between images.
2. DP-SGD from zero weights on z = 8 (f - mean) / sqrt(D). The gradient of the cross-entropy of one
   image is the outer product of [z; 1] and p - y, of norm |[z; 1]| |p - y|. It is shortened to
   `clip_norm`. Their sum over a Poisson sample of the images, with Gaussian noise, is divided by
   the expected size of the sample.

Settings depend on the number of images and on the budget alone, not on the images.

Sources: M. Abadi et al., "Deep learning with differential privacy", CCS 2016. H. Mehta et al.,
"Towards large scale transfer learning for differentially private image classification", TMLR 2023,
on private heads of a frozen backbone.
"""

import math
import os
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

import keras
import numpy as np
from scipy.special import softmax

from keras_transfer.errors import SpecError
from keras_transfer.fields import option
from keras_transfer.methods.accountant import divergences, epsilon_of, least_noise
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead
from keras_transfer.training.objective import Objective, PhaseContext

_SCALE: Final = 8.0
"""Norms of the scaled features are well above 1, so that the bias takes little of a gradient."""

_MEAN_NOISE: Final = 3.0
"""Noise of the mean, in units of that with which it would use up the budget: it costs a ninth."""

_LONGEST: Final = 300.0
_SIGNAL: Final = 3.75
"""Steps times learning rate are n / (3.75 sigma_1) and at most 300, in units of 1 / clip_norm:
sigma_1 is the noise with which a single sum over all n images would use up the budget."""

NOT_COVERED: Final = (
    "stored features, splits.json and the images and views that the run folder keeps",
    "figures that are computed on the images: the training, validation and test figures, and those "
    "of membership",
    "the number of images and the names of the classes",
    "other runs, and later work on the same images: their budgets add up, or they have none",
)
"""What a private head says nothing about, in words for the reports."""


@dataclass(frozen=True, kw_only=True)
class PrivateOptions:
    """Options of a head with differential privacy."""

    epsilon: float = option(2.0, "ε, the privacy budget of the whole run", low=0.01, high=100)
    delta: float = option(
        1e-5, "δ, the chance that the budget does not hold; below 1 / images", low=1e-15, high=0.1
    )
    steps: int = option(30, "steps of gradient descent, among which the budget is shared", low=1)
    sampling_rate: float = option(
        1.0,
        "chance of each image to be used in a step; 1 is best, less is faster",
        low=1e-3,
        high=1,
    )
    clip_norm: float = option(1.0, "largest norm of the gradient of one image", low=1e-3, high=1e3)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise multipliers of the steps and of the mean, and the learning rate with clip_norm 1."""

    steps: float
    mean: float
    learning_rate: float
    epsilon: float

    @classmethod
    def of(cls, options: PrivateOptions, num_images: int) -> "Noise":
        """The least that keeps to the budget; `epsilon` is what is spent of it."""
        budget = options.epsilon, options.delta
        single = least_noise(lambda noise: divergences(1, noise), *budget)
        mean = _MEAN_NOISE * single

        def spent(noise: float) -> np.ndarray:
            steps = options.steps * divergences(options.sampling_rate, noise)
            return steps + divergences(1, mean)

        steps = least_noise(spent, *budget)
        return cls(
            steps=steps,
            mean=mean,
            learning_rate=min(_LONGEST, num_images / (_SIGNAL * single)) / options.steps,
            epsilon=epsilon_of(spent(steps), options.delta),
        )


@dataclass(frozen=True)
class Private(MethodDefaults):
    """Trains a linear head by DP-SGD on stored features of the plain images."""

    options: PrivateOptions = field(default_factory=PrivateOptions)

    Options: ClassVar = PrivateOptions
    name: ClassVar[str] = "private"
    trains_once: ClassVar[bool] = True

    def check(self, spec: RunSpec, number: int) -> None:
        """Raise SpecError where something else would learn from the images without noise."""
        phase, training = spec.phases[number], spec.training
        head = """'phases=[{name="head",method="private"}]'"""
        wrong = (
            (len(spec.phases) > 1, f"{len(spec.phases)} phases", head),
            (
                phase.unfreeze != HEAD,
                f"unfreeze={phase.unfreeze}",
                f"phases.{number}.unfreeze=head",
            ),
            (spec.model.head != "linear", f"model.head={spec.model.head}", "model.head=linear"),
            (spec.task != "single_label", f"task={spec.task}", "task=single_label"),
            (
                training.class_weights != "none",
                "class weights by the labels",
                "training.class_weights=none",
            ),
            (
                training.sampling != "natural",
                "sampling by the labels",
                "training.sampling=natural",
            ),
            (spec.num_trials > 1, f"{spec.num_trials} trainings", "folds=1 seeds=1 halvings=0"),
            (training.refit, "a second training of the refit", "training.refit=false"),
        )
        if found := [(received, fix) for is_wrong, received, fix in wrong if is_wrong]:
            raise SpecError(
                f"phases.{number} trains with differential privacy, which needs another spec",
                expected="a linear head for single labels as the only thing that trains, once",
                received=", ".join(received for received, _ in found),
                fix=f"set {' '.join(fix for _, fix in found)}",
            )

    def num_views(self, phase: PhaseSpec, available: int) -> int:  # noqa: ARG002
        """The plain one: each image counts once."""
        return 1

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:
        """The solver of the head, with the figures of its privacy.

        Raises:
            SpecError: δ is not below 1 / the number of training images.
        """
        task, options, num_images = context.task, self.options, context.images.num_labelled
        if options.delta * num_images >= 1:
            raise SpecError(
                f"delta of phase {phase.name!r} would allow to publish one of the images",
                expected=f"delta below 1/{num_images} = {1 / num_images:.1e}",
                received=f"{options.delta:g}",
                fix="set phases.0.method_options.delta=1e-5, or lower",
            )
        noise = Noise.of(options, num_images)

        def solve(features: HeadFeatures, values: np.ndarray) -> LinearHead:
            # 256 bits of the operating system, which only this function ever knows.
            generator = np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(32))))
            return train_head(
                read_plain(features), task.encode(values), options, noise, generator=generator
            )

        loss = task.loss(context.spec.training)
        return Objective(part, loss, solve=solve, fits=False, privacy=figures(options, noise))


def figures(options: PrivateOptions, noise: Noise) -> dict[str, Any]:
    """What is guaranteed, as JSON values."""
    return {
        "epsilon": noise.epsilon,
        "delta": options.delta,
        "noise_multiplier": noise.steps,
        "sampling_rate": options.sampling_rate,
        "steps": options.steps,
        "clip_norm": options.clip_norm,
        "mean_noise_multiplier": noise.mean,
        "covers": "the weights of the head, for each training image",
        "does_not_cover": list(NOT_COVERED),
    }


def read_plain(features: HeadFeatures) -> np.ndarray:
    """The features of all examples in view 0, float32 [N, D]."""
    plain = replace(features, num_views=1)
    blocks = [block[:, 0].astype(np.float32) for _, block in plain.blocks()]
    return np.concatenate(blocks)


def train_head(
    features: np.ndarray,
    labels: np.ndarray,
    options: PrivateOptions,
    noise: Noise,
    *,
    generator: np.random.Generator,
) -> LinearHead:
    """A head on features [N, D] as they are, of labels [N, K]."""
    num_columns = features.shape[1]
    scale = _SCALE / math.sqrt(num_columns)
    mean = noisy_mean(features, math.sqrt(num_columns), noise.mean, generator)
    weights = descend(scale * (features - mean), labels, options, noise, generator=generator)
    kernel = scale * weights[:-1].astype(np.float64)
    bias = weights[-1] - mean @ kernel
    # The loss would be another figure of the images.
    return LinearHead(kernel, bias, noise.learning_rate, math.nan, options.steps)


def noisy_mean(
    features: np.ndarray, bound: float, noise: float, generator: np.random.Generator
) -> np.ndarray:
    """The mean of features [N, D], each shortened to a norm of `bound`, with noise; float32 [D]."""
    norms = np.linalg.norm(features, axis=1)
    total = bound / np.maximum(norms, bound) @ features
    total = total + noise * bound * generator.standard_normal(features.shape[1])
    return (total / len(features)).astype(np.float32)


def clipped_sum(inputs: np.ndarray, residuals: np.ndarray, clip_norm: float) -> np.ndarray:
    """The sum [D, K] of all x r^T of [N, D] and [N, K], each cut to a norm of `clip_norm`."""
    norms = np.linalg.norm(inputs, axis=1) * np.linalg.norm(residuals, axis=1)
    factors = clip_norm / np.maximum(norms, clip_norm)
    return inputs.T @ (factors[:, None] * residuals)


def descend(
    features: np.ndarray,
    labels: np.ndarray,
    options: PrivateOptions,
    noise: Noise,
    *,
    generator: np.random.Generator,
) -> np.ndarray:
    """Weights [D + 1, K], the bias last, after DP-SGD on features [N, D] and labels [N, K]."""
    inputs = np.hstack([features, np.ones((len(features), 1), np.float32)])
    weights = np.zeros((inputs.shape[1], labels.shape[1]), np.float32)
    deviation = noise.steps * options.clip_norm
    rate = noise.learning_rate / options.clip_norm
    expected_size = options.sampling_rate * len(features)
    for _ in range(options.steps):
        drawn: Any = slice(None)
        if options.sampling_rate < 1:
            drawn = generator.random(len(features)) < options.sampling_rate
        residuals = softmax(inputs[drawn] @ weights, axis=1) - labels[drawn]
        gradient = clipped_sum(inputs[drawn], residuals, options.clip_norm)
        gradient += deviation * generator.standard_normal(weights.shape)
        weights -= rate / expected_size * gradient
    return weights
