"""Structured pruning: the channels that matter least are removed, and the rest makes up for them.

A channel matters as much as it contributes to the layers that read it: by the mean square of its
values times the squared weights that it meets. After the removal every convolution and dense layer
gets, from the input up, the weights with which it comes closest to its outputs in the whole network
on some training images (ridge regression towards its old weights). No gradient is needed; phases
may train on from there.

Source: Y. He, X. Zhang and J. Sun, "Channel pruning for accelerating very deep neural networks",
ICCV 2017, on the reconstruction by least squares. H. Li et al., "Pruning filters for efficient
ConvNets", ICLR 2017, on the removal of whole filters.
"""

from typing import Final

import keras
import numpy as np
from keras import ops

from keras_transfer.compression.channels import (
    Channels,
    blocks,
    find_channels,
    kept_channels,
    mixes,
    without,
)
from keras_transfer.compression.network import Network
from keras_transfer.compression.reconstruction import reconstruct
from keras_transfer.compression.sample import Sample
from keras_transfer.models.folding import fold

MULTIPLE: Final = 8
"""Blocks keep a multiple of so many channels, which fills the registers of processors."""


def prune_channels(model: keras.Model, sample: Sample, amount: float) -> keras.Model:
    """A smaller network without the share `amount` of the channels of each block.

    The feature map keeps its channels; each block keeps 8 channels or more.

    Args:
        model: flat, from scaled images to a feature map. BatchNormalization is folded.
    """
    network = Network.copied(fold(model))
    channels = find_channels(network)
    channels.fix(channels.of[id(network.model.outputs[0])])
    scores = _contributions(network, channels, sample.images)
    removed: set[int] = set()
    for block in blocks(network, channels):
        removed |= _least(block, scores, amount)
    return _without(network, channels, removed, sample.images)


def prune_features(model: keras.Model, sample: Sample, amount: float) -> keras.Model:
    """A network without the share `amount` of the channels of its feature map.

    Those go that change the head's outputs least: by the variance of the pooled feature times the
    squared weights of the head. Where residual sums carry them, they go in all of their layers.

    Args:
        model: as for `prune_channels`.
    """
    network = Network.copied(fold(model))
    channels = find_channels(network)
    roots = channels.find(channels.of[id(network.model.outputs[0])])
    pooled = _pooled(network, sample.images)
    scores = dict(zip(roots.tolist(), pooled.var(axis=0) * sample.feature_weights, strict=True))
    free = roots[~channels.is_fixed(roots)]
    removed = _least(free, scores, amount)
    return _without(network, channels, removed, sample.images)


def _pooled(network: Network, images: np.ndarray) -> np.ndarray:
    """The mean of the feature map over its positions, float64 [N, C]."""
    maps = network.model.predict(images, batch_size=16, verbose=0)
    return maps.reshape(len(maps), -1, maps.shape[-1]).mean(axis=1, dtype="float64")


def _least(block: np.ndarray, scores: dict[int, float], amount: float) -> set[int]:
    """The channels of a block with the lowest scores, a share of it."""
    order = np.argsort([scores.get(int(root), 0.0) for root in block], kind="stable")
    return {int(root) for root in block[order[: num_removed(len(block), amount)]]}


def _without(
    network: Network, channels: Channels, removed: set[int], images: np.ndarray
) -> keras.Model:
    """The network without some channels; what is left makes up for them."""
    masks = kept_channels(network, channels, removed)
    pruned = without(network, masks)
    targets = {name: (name, made) for name, (_, made) in masks.items()}
    reconstruct(network, pruned, targets, images)
    return pruned.model


def num_removed(size: int, amount: float) -> int:
    """Channels to remove of a block: at most the share, so that a multiple of 8 is kept."""
    kept = -(-round(size * (1 - amount)) // MULTIPLE) * MULTIPLE
    return max(size - max(kept, MULTIPLE), 0)


def _contributions(network: Network, channels: Channels, images: np.ndarray) -> dict[int, float]:
    """How much each channel contributes to its readers: the mean of its shares in each of them."""
    shares: dict[int, list[float]] = {}
    for computed in network.computing(images):
        operation = computed.step.operation
        if not mixes(operation):
            continue
        values = computed.read[0]
        axes = tuple(range(len(values.shape) - 1))
        squares = ops.convert_to_numpy(ops.mean(ops.square(values), axis=axes))
        kernel = ops.convert_to_numpy(operation.kernel)
        weights = np.square(kernel).sum(axis=(*range(kernel.ndim - 2), -1))
        found = squares.astype("float64") * weights
        found /= max(found.sum(), np.finfo(float).tiny)
        roots = channels.find(channels.of[id(computed.step.reads[0])])
        total: dict[int, float] = {}
        for root, share in zip(roots.tolist(), found.tolist(), strict=True):
            total[root] = total.get(root, 0.0) + share
        for root, share in total.items():
            shares.setdefault(root, []).append(share)
    return {root: float(np.mean(some)) for root, some in shares.items()}
