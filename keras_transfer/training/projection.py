"""PCGrad: gradients of targets that are in conflict lose what makes the others' losses larger.

In the weights that the targets share, the gradient g_i of each target is compared with those of the
others in random order. Where g_i · g_j is below 0,

    g_i becomes g_i - (g_i · g_j) / ‖g_j‖² g_j

with the g_j before any projection. The step is then that of the sum of all g_i.

Source: T. Yu et al., "Gradient surgery for multi-task learning", NeurIPS 2020, algorithm 1.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_transfer.devices.gradients import separate_gradients, shuffled
from keras_transfer.devices.strategy import current


class ProjectedModel(keras.Model):
    """A part of a classifier, with a training step that projects gradients; TensorFlow only.

    `separate` gives the targets' losses [B] of encoded targets and logits. The weights of the layer
    `own` have columns of one target each; all others are shared. Gradients of each part of a batch,
    and of each replica, are projected for themselves.
    """

    separate: Callable[[Any, Any], Sequence[Any]]
    own: keras.layers.Layer

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step; returns the loss and the metrics, as Keras's own does."""
        inputs, targets, weights = keras.utils.unpack_x_y_sample_weight(data)
        kept = {}

        def losses() -> list[Any]:
            kept["outputs"] = self(inputs, training=True)
            separate = self.separate(targets, kept["outputs"])
            means = [ops.mean(own * weights) for own in separate]
            kept["loss"] = sum(means[1:], means[0])
            return [self.optimizer.scale_loss(mean / current().num_replicas) for mean in means]

        variables = self.trainable_variables
        gradients = separate_gradients(losses, variables)
        own = {id(variable) for variable in (*self.own.variables, *self._loss_variables())}
        is_shared = [id(variable) not in own for variable in variables]
        key = ops.stack([ops.cast(self.optimizer.iterations, "int32"), 0])
        self.optimizer.apply(joined(gradients, is_shared, key), variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(kept["loss"], sample_weight=ops.shape(inputs)[0])
        return self.compute_metrics(inputs, targets, kept["outputs"], weights)

    def _loss_variables(self) -> list[keras.Variable]:
        layer = getattr(self, "loss_layer", None)
        return layer.variables if layer else []


def joined(gradients: Sequence[Sequence[Any]], is_shared: Sequence[bool], key: Any) -> list[Any]:
    """The sum over targets of the gradients of each variable, of shared ones after projection.

    Args:
        gradients: of each target, of each variable.
        is_shared: of each variable.
        key: int32 [2] that the order of projections depends on.
    """
    summed = [sum(own[1:], own[0]) for own in zip(*gradients, strict=True)]
    places = [place for place, shared in enumerate(is_shared) if shared]
    if not places:
        return summed
    flat = ops.stack(
        [
            ops.concatenate([ops.reshape(ops.cast(own[p], "float32"), [-1]) for p in places])
            for own in gradients
        ]
    )
    start, total = 0, ops.sum(projected(flat, key), axis=0)
    for place in places:
        shape = summed[place].shape
        end = start + math.prod(shape)
        summed[place] = ops.cast(ops.reshape(total[start:end], shape), summed[place].dtype)
        start = end
    return summed


def projected(gradients: Any, key: Any) -> Any:
    """Gradients [T, P] of T targets after projection; `key` is that of `joined`."""
    number, found = gradients.shape[0], []
    squares = ops.maximum(ops.sum(ops.square(gradients), axis=1), keras.config.epsilon() ** 2)
    for target in range(number):
        order, gradient = shuffled(number, key + ops.array([0, target])), gradients[target]
        for turn in range(number):
            place = order[turn]
            other = ops.take(gradients, place, axis=0)
            conflict = ops.minimum(ops.sum(gradient * other), 0.0)
            conflict = ops.where(place == target, 0.0, conflict)
            gradient = gradient - conflict / ops.take(squares, place) * other
        found.append(gradient)
    return ops.stack(found)
