"""Folding: a copy of a network for inference, with BatchNormalization merged into convolutions.

With its moving statistics a BatchNormalization is x * scale + shift, one pair per channel. If the
layer before it is linear, both can be one layer:

    (conv(x, kernel) + bias) * scale + shift  =  conv(x, kernel * scale) + (bias * scale + shift)

Those that follow a sum, a concatenation or a pooling cannot be merged: the first in each block of
the ResNetV2s and DenseNets, four of NASNet's. They stay in place, as a product and a sum. No
supported network has one directly before a convolution, into which it could be merged instead.
"""

from collections import Counter
from typing import Any, Final

import keras
import numpy as np
from keras import ops

from keras_transfer.backbones.graph import only_draws
from keras_transfer.backbones.preprocess import Preprocess

LINEAR_KINDS: Final = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    keras.layers.Dense,
)
"""Layers whose last kernel has the output channels as its last axis, or as two if depthwise."""


def fold(model: keras.Model, *, dtype: str = "float32") -> keras.Model:
    """Copy a flat network for inference: same inputs, same outputs, its own weights.

    `model` is a classifier, or a part of one that starts at its input; each layer is called once.
    It is not changed. The copy computes, stores its weights and gives its outputs in `dtype`;
    `Preprocess` computes in float32, because half precision would round pixels. Folded weights are
    computed in float64 and rounded once.

    The copy is not trainable. It has no dropout and no other layer that only draws random numbers,
    because these do nothing outside training.
    """
    absorbed = _absorbed(model)
    passed_by = {norm.name for norm in absorbed.values()}
    passed_by |= {layer.name for layer in model.layers if only_draws(layer)}

    def call(layer: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.name in passed_by:
            return inputs
        if isinstance(layer, keras.layers.Rescaling):
            return layer(inputs)  # without the mask that a BatchNormalization takes
        outputs = layer(inputs, *args, **kwargs)
        return ops.cast(outputs, dtype) if isinstance(layer, Preprocess) else outputs

    folded = keras.models.clone_model(
        model,
        clone_function=lambda layer: _copy(layer, dtype=dtype, biased=layer.name in absorbed),
        call_function=call,
        recursive=True,  # the ConvNeXts contain small Sequentials
    )
    for layer in folded.layers:
        if layer.weights:
            norm = absorbed.get(layer.name)
            layer.set_weights(_weights(model.get_layer(layer.name), norm))
    folded.trainable = False
    return folded


def _absorbed(model: keras.Model) -> dict[str, keras.layers.BatchNormalization]:
    """The BatchNormalization that can be merged into each linear layer, by that layer's name.

    Nothing else may use the linear layer's output: no other layer, and not the model's outputs.
    """
    read = [x for operation in model.operations for x in keras.tree.flatten(operation.input)]
    num_readers = Counter(id(tensor) for tensor in [*read, *model.outputs])
    linear = {
        id(layer.output): layer
        for layer in model.layers
        if isinstance(layer, LINEAR_KINDS)
        and layer.activation is keras.activations.linear
        and num_readers[id(layer.output)] == 1
    }
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    return {linear[id(norm.input)].name: norm for norm in norms if id(norm.input) in linear}


def _copy(layer: Any, *, dtype: str, biased: bool) -> Any:
    """The same layer or operation, in `dtype`; its weights are set later.

    Weights start as zeros: random ones would take longer and change the global random state.
    """
    config = layer.get_config()
    if not isinstance(layer, keras.layers.Layer):
        return type(layer).from_config(config)
    config["dtype"] = "float32" if isinstance(layer, Preprocess) else dtype
    if isinstance(layer, keras.layers.BatchNormalization):
        scale, offset = _scale_and_shift(layer)
        return keras.layers.Rescaling(scale, offset, name=layer.name, dtype=dtype)
    config |= {key: "zeros" for key in config if key.endswith("_initializer")}
    if biased:
        config["use_bias"] = True
    return type(layer).from_config(config)


def _weights(
    layer: keras.layers.Layer, norm: keras.layers.BatchNormalization | None
) -> list[np.ndarray]:
    """The layer's weights with `norm` merged into them, if there is one; the bias is the last."""
    weights = layer.get_weights()
    if norm is None:
        return weights
    scale, shift = _scale_and_shift(norm)
    if layer.use_bias:
        shift = shift + weights.pop() * scale
    kernel = weights.pop()
    scaled = (kernel.reshape(-1, scale.size) * scale).reshape(kernel.shape)
    return [*weights, scaled, shift]


def _scale_and_shift(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of a BatchNormalization in inference, float64 [C] each."""
    assert norm.axis in (-1, len(norm.input.shape) - 1), "channels must be last"

    def value(variable: keras.Variable | None, default: float) -> Any:
        return default if variable is None else ops.convert_to_numpy(variable).astype("float64")

    scale = value(norm.gamma, 1.0) / np.sqrt(value(norm.moving_variance, 1.0) + norm.epsilon)
    return scale, value(norm.beta, 0.0) - value(norm.moving_mean, 0.0) * scale
