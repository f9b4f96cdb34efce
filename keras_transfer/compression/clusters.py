"""Weight sharing: the weights of each layer take few different values.

One-dimensional k-means from centroids at equal distances (linear initialisation), which keeps the
rare large weights apart. The biases stay as they are but for the mean error of each output, which
they make up for.

Source: S. Han, H. Mao and W. Dally, "Deep compression", ICLR 2016, section 3.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.compression.channels import mixes
from keras_transfer.compression.linear import patches, sample_positions, weights_of
from keras_transfer.compression.network import Network
from keras_transfer.compression.sample import Sample
from keras_transfer.models.folding import LINEAR_KINDS, fold

_MOST_ROUNDS: Final = 100
_BYTES: Final = 256
"""Indices of up to so many values take one byte each, of more two."""


def share_weights(model: keras.Model, sample: Sample, amount: float) -> keras.Model:
    """A network whose kernels have at most `amount` different values each.

    Args:
        model: flat, from scaled images to a feature map. BatchNormalization is folded.
    """
    whole = Network.copied(fold(model))
    shared = Network.copied(whole.model)
    for layer in shared.model.layers:
        if isinstance(layer, LINEAR_KINDS):
            layer.set_weights(
                [
                    nearest_values(weight, round(amount)) if weight.ndim > 1 else weight
                    for weight in layer.get_weights()
                ]
            )
    _correct_biases(whole, shared, sample.images)
    return shared.model


def nearest_values(weights: np.ndarray, count: int) -> np.ndarray:
    """The weights with each replaced by the nearest of `count` centroids of k-means."""
    flat = np.sort(weights, axis=None).astype("float64")
    if len(np.unique(flat)) <= count:
        return weights
    sums = np.concatenate([[0.0], np.cumsum(flat)])
    centroids = np.linspace(flat[0], flat[-1], count)
    for _ in range(_MOST_ROUNDS):
        # The weights are sorted: those of a centroid are between two positions.
        inner = np.searchsorted(flat, (centroids[1:] + centroids[:-1]) / 2)
        ends = np.concatenate([[0], inner, [len(flat)]])
        counts = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    centroids = np.unique(centroids.astype(weights.dtype))
    chosen = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, weights)
    result: np.ndarray = centroids[chosen]
    return result


def _correct_biases(whole: Network, shared: Network, images: np.ndarray) -> None:
    """Give the outputs of layers that mix channels the means of those in the whole network."""
    generator = np.random.default_rng(0)
    for other, computed in zip(whole.computing(images), shared.computing(images), strict=True):
        layer = computed.step.operation
        if not mixes(layer) or not layer.use_bias:
            continue
        rows = sample_positions(layer, computed, generator)
        means = [
            (patches(each, part.read[0], rows) @ weights_of(each)[0]).mean(axis=0)
            for each, part in ((other.step.operation, other), (layer, computed))
        ]
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel, bias + means[0] - means[1]])


def write_codebooks(model: keras.Model, file: Path) -> None:
    """Write all weights to a compressed .npz file, kernels of few values as codebook and indices.

    For the weight with the path p it has p, or p:values and p:indices.
    """
    arrays: dict[str, np.ndarray] = {}
    for variable in model.weights:
        values = keras.ops.convert_to_numpy(variable)
        distinct, indices = np.unique(values, return_inverse=True)
        if values.ndim > 1 and len(distinct) <= values.size // 4:
            kind = np.uint8 if len(distinct) <= _BYTES else np.uint32
            arrays[f"{variable.path}:values"] = distinct
            arrays[f"{variable.path}:indices"] = indices.reshape(values.shape).astype(kind)
        else:
            arrays[variable.path] = values
    with file.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def read_codebooks(file: Path) -> Mapping[str, np.ndarray]:
    """The weights in a file of `write_codebooks`, by the path of each."""
    with np.load(file) as content:
        arrays: dict[str, Any] = dict(content)
    return {
        name.removesuffix(":values"): (
            array[arrays[f"{name.removesuffix(':values')}:indices"]]
            if name.endswith(":values")
            else array
        )
        for name, array in arrays.items()
        if not name.endswith(":indices")
    }
