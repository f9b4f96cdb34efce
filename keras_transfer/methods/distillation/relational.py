"""Relations: distances and angles between examples of a batch follow the teacher's.

Source: W. Park et al., "Relational knowledge distillation", CVPR 2019.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
from keras import ops

from keras_transfer.fields import option
from keras_transfer.methods.distillation.kind import Batch, KindDefaults, divergences, unit_rows


@dataclass(frozen=True, kw_only=True)
class RelationalOptions:
    """Options of relational distillation."""

    distance: float = option(1.0, "weight of the distances against the soft labels", low=0)
    angle: float = option(2.0, "weight of the angles against the soft labels", low=0)


@dataclass(frozen=True)
class Relational(KindDefaults):
    """The divergence of kind 'logits' plus differences of distances and of angles.

    Distances of pairs are divided by the mean of the batch; angles of triples are cosines at their
    middle example. Differences d count by Huber's function, d^2 / 2 up to 1 and |d| - 1 / 2 above.
    The loss of an example is the mean over its pairs, and over the triples with it in the middle.
    """

    options: RelationalOptions = field(default_factory=RelationalOptions)

    Options: ClassVar = RelationalOptions
    name: ClassVar[str] = "relational"
    reads_features: ClassVar[bool] = True

    def losses(self, batch: Batch) -> Any:
        """See the class."""
        ours, theirs = batch.student_features, batch.teacher_features
        by_distance = ops.mean(_huber(distances(ours) - distances(theirs)), axis=-1)
        by_angle = ops.mean(_huber(angles(ours) - angles(theirs)), axis=(-2, -1))
        relations = self.options.distance * by_distance + self.options.angle * by_angle
        return divergences(batch) + relations


def distances(features: Any) -> Any:
    """Euclidean distances [B, B] of features [B, D], as multiples of the mean of pairs."""
    differences = features[:, None] - features[None]
    squares = ops.sum(ops.square(differences), axis=-1)
    # The root has no gradient at 0, which is the distance of an example to itself.
    far = squares > keras.config.epsilon()
    roots = ops.where(far, ops.sqrt(ops.where(far, squares, 1.0)), 0.0)
    count = ops.maximum(ops.sum(ops.cast(far, roots.dtype)), 1.0)
    return roots / ops.maximum(ops.sum(roots) / count, keras.config.epsilon())


def angles(features: Any) -> Any:
    """Cosines [B, B, B] of the angles at example i between the lines to j and to k."""
    directions = unit_rows(features[None] - features[:, None])
    return ops.matmul(directions, ops.transpose(directions, (0, 2, 1)))


def _huber(differences: Any) -> Any:
    size = ops.abs(differences)
    return ops.where(size < 1, 0.5 * ops.square(size), size - 0.5)
