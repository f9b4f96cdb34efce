"""The networks of combinations: a mean of weights, and a mean of probabilities in one graph."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_transfer.backbones.graph import is_random_state
from keras_transfer.backbones.trunk import copy_renamed
from keras_transfer.errors import SpecError
from keras_transfer.inference.prediction import LoadedRun

_POOLING = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)
_ACTIVATIONS = ("softmax", "sigmoid")


def mean_weights(
    models: Sequence[keras.Model], *, shares: Sequence[float] | None = None
) -> list[np.ndarray]:
    """The mean of each weight over networks of one architecture, in the order of `weights`.

    `shares` are the networks' shares of the mean; None is the same for all.

    Source: M. Wortsman et al., "Model soups", ICML 2022.
    """
    means = []
    for weights in zip(*(model.weights for model in models), strict=True):
        if is_random_state(weights[0]):
            means.append(np.array(weights[0]))
            continue
        values = [np.asarray(weight, np.float64) for weight in weights]
        means.append(np.average(values, axis=0, weights=shares).astype(np.float32))
    return means


def averaged(model: keras.Model, weights: Sequence[np.ndarray]) -> keras.Model:
    """A copy of the model with these weights."""
    copied = keras.models.clone_model(model)
    copied.set_weights(weights)
    return copied


def joined(runs: Sequence[LoadedRun]) -> keras.Model:
    """One flat network whose outputs are the mean of the runs' probabilities.

    The feature maps of all trunks are concatenated, pooled once, and a dense layer with a block
    for each run gives all their logits. So it is exported and explained like other classifiers.
    Its logits are those of the mean probability: softmax or sigmoid of them is the mean.

    Raises:
        SpecError: the runs' heads or feature maps cannot be joined.
    """
    task, first = runs[0].task, runs[0].model
    _check_heads(runs)
    inputs = keras.Input(first.input.shape[1:], name="image", dtype="float32")
    maps = []
    for number, run in enumerate(runs):
        trunk = keras.Model([run.model.input], run.model.get_layer("pooling").input)
        maps.append(copy_renamed(trunk, inputs, prefix=f"member{number}_").output)
    _check_sides(runs, maps)
    features = keras.layers.Concatenate(name="concatenated")(maps)
    pooled = type(first.get_layer("pooling"))(name="pooling")(features)
    heads = [run.model.get_layer("logits") for run in runs]
    dense = keras.layers.Dense(len(runs) * len(task.names), dtype="float32", name="logits")
    logits = keras.layers.Reshape((len(runs), len(task.names)), name="members")(dense(pooled))
    dense.set_weights(_blocks(heads))
    return keras.Model(
        inputs, _mean(logits, is_softmax=task.activation == "softmax"), name=first.name
    )


def _blocks(heads: Sequence[keras.layers.Dense]) -> list[np.ndarray]:
    """Kernel and bias of all heads in one: each reads its own features and gives its own logits."""
    kernels = [np.array(head.kernel) for head in heads]
    kernel = np.zeros(np.sum([one.shape for one in kernels], axis=0), np.float32)
    row = column = 0
    for one in kernels:
        kernel[row : row + len(one), column : column + one.shape[1]] = one
        row, column = row + len(one), column + one.shape[1]
    return [kernel, np.concatenate([np.array(head.bias) for head in heads])]


def _mean(logits: Any, *, is_softmax: bool) -> Any:
    """Logits [B, K] of the mean probability of logits [B, M, K], without underflow.

    Of softmax they lack the constant -log M, which changes no probability.
    """
    if is_softmax:
        return ops.logsumexp(ops.log_softmax(logits), axis=1)
    positive = ops.logsumexp(ops.log_sigmoid(logits), axis=1)
    return positive - ops.logsumexp(ops.log_sigmoid(-logits), axis=1)


def _check_heads(runs: Sequence[LoadedRun]) -> None:
    kinds = [_head(run.model) for run in runs]
    pooling = {layers[0] for layers in kinds if layers}
    fits = len(pooling) == 1 and all(layers[1:] == [keras.layers.Dense] for layers in kinds)
    if not fits or not pooling <= set(_POOLING) or runs[0].task.activation not in _ACTIVATIONS:
        raise SpecError(
            "the heads of these runs cannot be joined in one network",
            expected="classes or labels, model.head=linear, and the same model.pooling, avg or max",
            received="; ".join(
                f"{run.folder.path}: {run.task.name}, "
                + " → ".join(kind.__name__ for kind in layers)
                for run, layers in zip(runs, kinds, strict=True)
            ),
            fix="leave these runs out, or combine runs of one network by how=soup",
        )


def _head(model: keras.Model) -> list[type]:
    """The kinds of the layers from the pooling up, without dropout; none where it is not found."""
    names = [layer.name for layer in model.layers]
    if "pooling" not in names:
        return []
    layers = model.layers[names.index("pooling") :]
    return [type(layer) for layer in layers if not isinstance(layer, keras.layers.Dropout)]


def _check_sides(runs: Sequence[LoadedRun], maps: Sequence[keras.KerasTensor]) -> None:
    sides = [tuple(tensor.shape[1:3]) for tensor in maps]
    if len(set(sides)) > 1:
        described = zip(runs, sides, strict=True)
        raise SpecError(
            "the feature maps of these runs differ in size",
            expected="the same height and width",
            received=", ".join(f"{run.folder.path}: {a} x {b}" for run, (a, b) in described),
            fix="leave runs out whose backbone ends at another size",
        )
