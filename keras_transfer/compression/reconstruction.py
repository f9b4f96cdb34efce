"""Fits the layers of a smaller network to the outputs of the whole one, without gradients.

From the input up every convolution and dense layer gets the weights with which it comes closest to
its outputs in the whole network on some training images: each layer makes up for what those below
it lost.

Source: Y. He, X. Zhang and J. Sun, "Channel pruning for accelerating very deep neural networks",
ICCV 2017, section 3.1.
"""

from collections.abc import Mapping

import numpy as np
from keras import ops

from keras_transfer.compression.channels import mixes
from keras_transfer.compression.linear import fit_weights, patches, sample_positions, weights_of
from keras_transfer.compression.network import Computed, Network

Targets = Mapping[str, tuple[str, np.ndarray | slice]]
"""By the name of a layer of the smaller network: the layer of the whole one that it follows, and
which outputs of that."""


def reconstruct(whole: Network, smaller: Network, targets: Targets, images: np.ndarray) -> None:
    """Fit the layers of `smaller` that mix channels and read other values than in `whole`.

    Args:
        targets: of layers in the order of both networks; those without one keep their weights.
        images: float32 [N, S, S, C], scaled.
    """
    generator = np.random.default_rng(0)
    others = whole.computing(images)
    for computed in smaller.computing(images):
        layer = computed.step.operation
        if layer.name not in targets or not mixes(layer):
            continue
        name, made = targets[layer.name]
        other = next(one for one in others if one.step.operation.name == name)
        if _reads_the_same(other, computed):
            continue
        kernel, bias = weights_of(other.step.operation)
        rows = sample_positions(other.step.operation, other, generator)
        outputs = patches(other.step.operation, other.read[0], rows) @ kernel[:, made] + bias[made]
        fit_weights(layer, patches(layer, computed.read[0], rows), outputs)


def _reads_the_same(one: Computed, other: Computed) -> bool:
    first, second = one.read[0], other.read[0]
    return first.shape == second.shape and bool(ops.all(ops.equal(first, second)))
