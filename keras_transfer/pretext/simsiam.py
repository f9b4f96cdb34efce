"""SimSiam: two views of an image have similar features.

X. Chen and K. He, "Exploring simple Siamese representation learning", CVPR 2021. A projector maps
pooled features to z, a predictor maps z to p, and the loss of views 1 and 2 is

    -cos(p1, stop(z2)) / 2 - cos(p2, stop(z1)) / 2

where stop() lets no gradient pass. The widths are smaller than in the paper, in proportion to small
trunks.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import keras
import numpy as np
from keras import layers, ops

from keras_transfer.data.datasets import Inputs, Views
from keras_transfer.data.views import POLICIES, strengths
from keras_transfer.devices.strategy import scope
from keras_transfer.errors import SpecError
from keras_transfer.models.classifier import Classifier, put_trunk
from keras_transfer.models.forward import forward_pixels
from keras_transfer.pretext.kind import Measured, Pretext, PretextData, UnlabelledImages
from keras_transfer.specs import HEAD, RunSpec
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.phases import PhaseResult

WIDTH: Final = 256
"""Of z and of the projector's hidden layer."""
HIDDEN: Final = 64
"""Of the predictor's hidden layer: a quarter of z, as in the paper."""
COLLAPSED: Final = 0.1
"""A spread below this share of that of random directions is called a collapse."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Two views of a row: of view number v those numbered 2 v + 1 and 2 v + 2."""

    views: Inputs

    @property
    def shape(self) -> tuple[int, ...]:
        """[2, S, S, 3]."""
        return (2, *self.views.shape)

    @property
    def dtype(self) -> np.dtype:
        """That of the views."""
        return self.views.dtype

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        """Both views, [B, 2, S, S, 3]."""
        pair = [self.views.read(rows, 2 * view_indices + number) for number in (1, 2)]
        return np.stack(pair, axis=1)


class NegativeCosine(keras.losses.Loss):
    """The loss of outputs [B, 4, WIDTH] of `Siamese`: p1, p2, z1, z2. Targets are not used."""

    def call(self, y_true: Any, y_pred: Any) -> Any:  # noqa: ARG002
        """The loss of each example, [B], from -1 for equal directions to 1."""
        p1, p2, z1, z2 = (y_pred[:, number] for number in range(4))
        return -(_cosine(p1, ops.stop_gradient(z2)) + _cosine(p2, ops.stop_gradient(z1))) / 2


def _cosine(one: Any, other: Any) -> Any:
    return ops.sum(ops.normalize(one, axis=-1) * ops.normalize(other, axis=-1), axis=-1)


def spread(outputs: Any) -> Any:
    """How far outputs [N, D] are from a collapse: 0 if all have one direction, 1 if in all alike.

    It is the standard deviation of each of the D columns of the outputs with norm 1, averaged and
    divided by 1 / sqrt(D), that of random directions.
    """
    deviations = ops.std(ops.normalize(outputs, axis=-1), axis=0)
    return ops.mean(deviations) * math.sqrt(outputs.shape[-1])


class Siamese(keras.Model):
    """From pairs of views [B, 2, S, S, 3] to p1, p2, z1, z2 [B, 4, WIDTH]."""

    spread: keras.metrics.Mean

    def compile(self, **settings: Any) -> None:
        """Without the metrics of a task: there are no targets that they could read."""
        super().compile(**{**settings, "weighted_metrics": None})

    def compute_metrics(
        self,
        x: Any,  # noqa: ARG002
        y: Any,  # noqa: ARG002
        y_pred: Any,
        sample_weight: Any = None,  # noqa: ARG002
    ) -> Any:
        """The loss and the spread of z1, means over the batches of the epoch."""
        self.spread.update_state(spread(y_pred[:, 2]))
        return self.get_metrics_result()


@dataclass(frozen=True)
class SimSiam:
    """Training by `NegativeCosine`; the last epoch is kept, because a collapse has the best loss.

    BatchNormalization of the projector and the predictor always trains.
    """

    name: ClassVar[str] = "simsiam"

    def check(self, spec: RunSpec) -> None:
        """Raise SpecError if both views of a pair would be the same."""
        off = POLICIES["none"]
        views = strengths(spec.views)
        if all(getattr(views, name) == value for name, value in off.items()):
            raise SpecError(
                "kind=simsiam compares two views of an image, and views are switched off",
                expected="views.policy=light or strong",
                received=f"views.policy={spec.views.policy} without any other strength",
                fix="set views.policy=strong",
            )

    def prepare(self, images: UnlabelledImages, spec: RunSpec) -> Pretext:
        """The Siamese network; see `Kind.prepare`."""
        inputs, trunk = put_trunk(
            spec.model,
            image_size=spec.data.image_size,
            channels=spec.data.channels,
            seed=spec.seed,
        )
        with scope():
            projector = _projector()
            outputs = trunk.output
            for layer in projector:
                outputs = layer(outputs)
            branch = keras.Model(inputs, outputs, name="branch")
            stages = {**trunk.stages, HEAD: tuple(projector)}
            # There are no classes: the name stands for the target that is not used.
            classifier = Classifier(branch, trunk, stages, SingleLabel(("image",)))
            model = _siamese(branch)
        data = PretextData(
            spec,
            images.examples,
            Pairs(Views(images.examples, spec.views)),
            lambda values: np.zeros((len(values), 1), np.float32),
            images.train,
        )
        return Pretext(classifier, model, NegativeCosine(name="negative_cosine"), data)

    def measure(self, pretext: Pretext, images: UnlabelledImages, result: PhaseResult) -> Measured:
        """The spread of z on plain images that were not trained on."""
        outputs = forward_pixels(pretext.classifier.model, images.examples.pixels, rows=images.val)
        found = float(spread(outputs))
        verdict = "collapsed" if found < COLLAPSED else "no collapse"
        sentence = (
            f"Outputs for new images have a spread of {found:.2f}, where 0 is a collapse and 1 are "
            f"random directions: {verdict}. The loss is {result.history[-1]['loss']:.3f} (-1 is "
            "the least)."
        )
        return Measured({"spread": found, "loss": result.history[-1]["loss"]}, sentence)


def _projector() -> list[layers.Layer]:
    """From the feature map to z [B, WIDTH], with BatchNormalization after both dense layers."""
    return [
        layers.GlobalAveragePooling2D(name="pooling"),
        layers.Dense(WIDTH, use_bias=False, name="projector_1"),
        layers.BatchNormalization(name="projector_1_bn"),
        layers.ReLU(name="projector_1_relu"),
        layers.Dense(WIDTH, use_bias=False, name="projector_2"),
        # With an offset all outputs could get one direction, which is a collapse.
        layers.BatchNormalization(
            center=False, scale=False, name="projector_2_bn", dtype="float32"
        ),
    ]


def _siamese(branch: keras.Model) -> Siamese:
    pairs = keras.Input((2, *branch.input_shape[1:]), name="pairs")
    predictor = [
        layers.Dense(HIDDEN, use_bias=False, name="predictor_1"),
        layers.BatchNormalization(name="predictor_1_bn"),
        layers.ReLU(name="predictor_1_relu"),
        layers.Dense(WIDTH, name="predictor_2", dtype="float32"),
    ]
    projections = [branch(pairs[:, number]) for number in range(2)]
    predictions = []
    for outputs in projections:
        for layer in predictor:
            outputs = layer(outputs)
        predictions.append(outputs)
    model = Siamese(pairs, ops.stack([*predictions, *projections], axis=1), name="siamese")
    model.spread = keras.metrics.Mean(name="spread")
    return model
