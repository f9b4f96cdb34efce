"""BSS: batch spectral shrinkage, a penalty on the weakest directions of a batch's features.

The loss of a training batch has one term more:

    strength · (sum of the k smallest squared singular values of the features [B, D])

Directions in which the pretrained features of a batch hardly differ transfer worst; the penalty
suppresses them. The squared singular values are the eigenvalues of the Gram matrix of the batch.
Copies that fill an epoch's last batch count as examples; with them its smallest ones are 0.

Source: X. Chen et al., "Catastrophic forgetting meets negative transfer: batch spectral shrinkage
for safe transfer learning", NeurIPS 2019.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
from keras import ops

from keras_transfer.errors import SpecError
from keras_transfer.fields import option
from keras_transfer.methods.feature_terms import with_term
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec
from keras_transfer.training.objective import Objective, PhaseContext


@dataclass(frozen=True, kw_only=True)
class BSSOptions:
    """Options of batch spectral shrinkage."""

    strength: float = option(
        0.001, "of the penalty on the smallest squared singular values", low=1e-9, high=1e6
    )
    k: int = option(1, "number of singular values that are penalised", low=1)


@dataclass(frozen=True)
class BSS(MethodDefaults):
    """Trains on the task's loss and on the smallest singular values of each batch's features."""

    options: BSSOptions = field(default_factory=BSSOptions)

    Options: ClassVar = BSSOptions
    name: ClassVar[str] = "bss"

    def check(self, spec: RunSpec, number: int) -> None:
        """Raise SpecError if features do not train, or a batch has fewer than k images."""
        phase, size = spec.phases[number], spec.training.batch_size
        if phase.unfreeze == HEAD and spec.model.head == "linear":
            raise SpecError(
                f"phase {phase.name!r} trains no features, whose singular values are penalised",
                expected="a phase that unfreezes layers below a linear head",
                received=f"phases.{number}.unfreeze={HEAD}",
                fix="set its unfreeze to 'last' or another stage, or use method 'supervised'",
            )
        if self.options.k > size:
            raise SpecError(
                "a batch has fewer singular values than are penalised",
                expected=f"k of at most training.batch_size, {size}",
                received=f"phases.{number}.method_options.k={self.options.k}",
                fix="lower k, such as k=1",
            )

    def prepare(
        self,
        context: PhaseContext,
        phase: PhaseSpec,  # noqa: ARG002
        part: keras.Model,
    ) -> Objective:
        """The task's loss and the penalty."""
        options = self.options

        def term(features: Any, targets: Any, weights: Any) -> Any:  # noqa: ARG001
            return options.strength * smallest_squares(features, options.k)

        model = with_term(part, context.head, term)
        return Objective(model, context.task.loss(context.spec.training))


def smallest_squares(features: Any, k: int) -> Any:
    """The sum of the k smallest squared singular values of features [B, D], a scalar.

    With the eigenvectors of the Gram matrix taken as constants, value and gradient are those of its
    eigenvalues; a gradient through the eigenvectors is not finite where two eigenvalues are equal.
    """
    values = ops.cast(features, "float32")
    gram = ops.matmul(values, ops.transpose(values))
    _, vectors = ops.eigh(ops.stop_gradient(gram))  # eigenvalues in ascending order
    num_images, num_features = ops.shape(values)
    # Of more images than features the first eigenvalues are 0 whatever the features are.
    first = ops.maximum(num_images - num_features, 0)
    weak = vectors[:, first : first + k]
    return ops.sum(ops.square(ops.matmul(ops.transpose(values), ops.stop_gradient(weak))))
