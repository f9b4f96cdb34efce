"""Features: what is below the student's logits follows the teacher's, besides the soft labels.

Sources: A. Romero et al., "FitNets", ICLR 2015. F. Tung and G. Mori, "Similarity-preserving
knowledge distillation", ICCV 2019.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
from keras import ops

from keras_transfer.backbones.graph import Call
from keras_transfer.fields import option
from keras_transfer.methods.distillation.kind import Batch, KindDefaults, divergences, unit_rows
from keras_transfer.models.cuts import Cut


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Options of feature matching."""

    weight: float = option(1.0, "weight of the features against the soft labels", low=0)


@dataclass(frozen=True)
class Feature(KindDefaults):
    """The divergence of kind 'logits' plus weight times a mean squared difference of features.

    The student's features pass through a dense layer, the adapter, which is trained with it and
    then dropped. Differences are divided by the root mean square of the teacher's features.
    """

    options: FeatureOptions = field(default_factory=FeatureOptions)

    Options: ClassVar = FeatureOptions
    name: ClassVar[str] = "feature"
    reads_features: ClassVar[bool] = True

    def student_features(self, calls: Sequence[Call], teacher: Cut) -> Any:
        """The input of the last dense layer, through one without activation."""
        features = super().student_features(calls, teacher)
        adapter = keras.layers.Dense(teacher.num_values, name="adapter", dtype="float32")
        return adapter(features)

    def losses(self, batch: Batch) -> Any:
        """See the class."""
        squares = ops.square(batch.student_features - batch.teacher_features)
        scale = ops.mean(ops.square(batch.teacher_features)) + keras.config.epsilon()
        return divergences(batch) + self.options.weight * ops.mean(squares, axis=-1) / scale


@dataclass(frozen=True, kw_only=True)
class SimilarityOptions:
    """Options of similarity-preserving distillation."""

    weight: float = option(1.0, "weight of the similarities against the soft labels", low=0)


@dataclass(frozen=True)
class Similarity(KindDefaults):
    """The divergence of kind 'logits' plus a difference of similarities within the batch.

    With F [B, D] and G = F F^T, whose rows are divided by their norms, the loss of example i is
    weight / B times the squared norm of row i of the difference of both G. Numbers of features may
    differ, so no adapter is needed. Copies that fill a batch are partners as well.
    """

    options: SimilarityOptions = field(default_factory=SimilarityOptions)

    Options: ClassVar = SimilarityOptions
    name: ClassVar[str] = "similarity"
    reads_features: ClassVar[bool] = True

    def losses(self, batch: Batch) -> Any:
        """See the class."""
        ours, theirs = map(similarities, (batch.student_features, batch.teacher_features))
        by_row = ops.mean(ops.square(ours - theirs), axis=-1)
        return divergences(batch) + self.options.weight * by_row


def similarities(features: Any) -> Any:
    """F F^T with rows of norm 1, [B, B]."""
    return unit_rows(ops.matmul(features, ops.transpose(features)))
