"""Losses of a batch that read the features below the last layer, besides the task's loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_transfer.backbones.graph import traced
from keras_transfer.devices.strategy import current

Term = Callable[[Any, Any, Any], Any]
"""From features [B, D], encoded targets [B, K] and weights [B] of a batch to a scalar; copies that
fill a batch weigh 0."""


@dataclass(frozen=True, eq=False)
class _FeatureTerm:
    """A term, and the graph from inputs to logits and features."""

    graph: keras.Model
    term: Term


class TermModel(keras.Model):
    """A part of a classifier, with a term of its features in the training loss."""

    feature_term: _FeatureTerm

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:  # noqa: ARG002
        """The logits [B, K]; the features of the same call are kept for the loss."""
        logits, self._features = self.feature_term.graph(inputs, training=training)
        return logits

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The compiled loss; in training with the term."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        devices = current()
        # Keras adds up the gradients of the replicas.
        num_replicas = devices.num_devices if devices.strategy == "mirrored" else 1
        return loss + self.feature_term.term(self._features, y, sample_weight) / num_replicas


def with_term(part: keras.Model, head: Sequence[keras.layers.Layer], term: Term) -> TermModel:
    """The part with the same layers, and a term of what the last dense layer of the head reads.

    Features are read before dropout.
    """
    graph, calls = traced(part)
    layers = {id(layer) for layer in head}
    dense = [
        call
        for call in calls
        if id(call.operation) in layers and isinstance(call.operation, keras.layers.Dense)
    ]
    features = dense[-1].reads[0]
    for call in calls:
        if call.makes[0] is features and isinstance(call.operation, keras.layers.Dropout):
            features = call.reads[0]
            break
    model = TermModel(graph.inputs[0], graph.outputs[0], name=part.name)
    model.feature_term = _FeatureTerm(
        keras.Model(graph.inputs[0], [graph.outputs[0], features]), term
    )
    return model
