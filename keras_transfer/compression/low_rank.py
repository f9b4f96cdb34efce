"""Low rank: a layer with many weights becomes two with few, one after the other.

The outputs of a layer on training images have a covariance; the directions with the largest
variance are kept. With U [K, R] of these directions and m the mean of the outputs,

    y  ≈  (y - m) U Uᵀ + m,

so the first layer has the kernel W U and no bias, and the second one, a 1 × 1 convolution or dense
layer, the kernel Uᵀ, a bias and the activation. Layers that would not have clearly fewer weights
stay as they are. Then each layer is fitted to its outputs in the whole network.

Source: X. Zhang et al., "Accelerating very deep convolutional networks for classification and
detection", PAMI 2016, section 3.1.
"""

from dataclasses import dataclass
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.compression.channels import mixes
from keras_transfer.compression.linear import patches, sample_positions, weights_of
from keras_transfer.compression.network import Network
from keras_transfer.compression.reconstruction import reconstruct
from keras_transfer.compression.sample import Sample
from keras_transfer.models.folding import fold

MOST_WEIGHTS: Final = 0.8
"""The two layers have at most this share of the weights of the one that they replace."""
_SECOND: Final = "_outputs"
"""The end of the name of the second layer."""


@dataclass(frozen=True, eq=False)
class _Factors:
    """The kernels [D, R] and [R, K], and the bias [K], of the two layers in place of one."""

    first: np.ndarray
    second: np.ndarray
    bias: np.ndarray


def factorise(model: keras.Model, sample: Sample, amount: float) -> keras.Model:
    """A network in which layers lose at most the share `amount` of their outputs' variance.

    Args:
        model: flat, from scaled images to a feature map. BatchNormalization is folded.
    """
    network = Network.copied(fold(model))
    factors = _find_factors(network, sample, amount)
    second: dict[str, keras.layers.Layer] = {}

    def make(operation: Any) -> Any:
        config = operation.get_config()
        if operation.name in factors:
            second[operation.name] = _second(operation, factors[operation.name])
            rank = factors[operation.name].first.shape[1]
            key = "units" if isinstance(operation, keras.layers.Dense) else "filters"
            config |= {key: rank, "use_bias": False, "activation": None}
        return type(operation).from_config(config)

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = operation(*args, **kwargs)
        return second[operation.name](outputs) if operation.name in second else outputs

    smaller = keras.models.clone_model(
        network.model, clone_function=make, call_function=call, recursive=False
    )
    for layer in network.model.layers:
        if layer.name in factors:
            found = factors[layer.name]
            shape = (*layer.kernel.shape[:-1], found.first.shape[1])
            smaller.get_layer(layer.name).set_weights([found.first.reshape(shape)])
            kernel = found.second.reshape(second[layer.name].kernel.shape)
            second[layer.name].set_weights([kernel, found.bias])
        elif layer.weights:
            smaller.get_layer(layer.name).set_weights(layer.get_weights())
    pair = Network.copied(smaller)
    targets = {
        f"{layer.name}{_SECOND}" if layer.name in factors else layer.name: (layer.name, slice(None))
        for layer in network.model.layers
    }
    reconstruct(network, pair, targets, sample.images)
    return pair.model


def _find_factors(network: Network, sample: Sample, amount: float) -> dict[str, _Factors]:
    generator, found = np.random.default_rng(0), {}
    for computed in network.computing(sample.images):
        layer = computed.step.operation
        if not mixes(layer):
            continue
        kernel, bias = weights_of(layer)
        positions = sample_positions(layer, computed, generator)
        outputs = patches(layer, computed.read[0], positions) @ kernel + bias
        mean = outputs.mean(axis=0)
        values, directions = np.linalg.eigh(np.cov(outputs.astype("float64"), rowvar=False))
        rank = _rank(values[::-1], amount)
        if rank * sum(kernel.shape) <= MOST_WEIGHTS * kernel.size:
            kept = directions[:, ::-1][:, :rank].astype("float32")
            # The bias also moves the mean back, which the directions need not hold.
            moved = (bias - mean) @ kept @ kept.T + mean
            found[layer.name] = _Factors(kernel @ kept, kept.T, moved.astype("float32"))
    return found


def _rank(variances: np.ndarray, amount: float) -> int:
    """How many of the largest variances hold all but the share `amount` of their sum; ≥ 1."""
    lost = 1 - np.cumsum(variances) / max(variances.sum(), np.finfo(float).tiny)
    return int(np.argmax(lost <= amount + 1e-12)) + 1


def _second(layer: Any, factors: _Factors) -> keras.layers.Layer:
    """The layer after the first one, with random weights."""
    name, size = f"{layer.name}{_SECOND}", factors.second.shape[1]
    if isinstance(layer, keras.layers.Dense):
        return keras.layers.Dense(size, activation=layer.activation, name=name)
    return keras.layers.Conv2D(size, 1, activation=layer.activation, name=name)
