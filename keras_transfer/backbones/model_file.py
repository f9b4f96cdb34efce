"""The backbone in a Keras model file: its graph up to the last feature map, in named stages.

    file → layers without models inside models → feature map → copy with the weights → stages

Left out are the classification layers on top, layers that only act in training, such as dropout,
and a `Preprocess`, which the trunk has itself. Normalization becomes Rescaling, which needs no
variables; regularisers are dropped, because phases have their weight decay.
"""

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple

import keras
import numpy as np

from keras_transfer.backbones.graph import Call, bridges, only_draws, weights_of
from keras_transfer.backbones.preprocess import Preprocess, num_planes
from keras_transfer.backbones.record import Backbone
from keras_transfer.backbones.resolution import find_stages
from keras_transfer.backbones.scaling import MODES
from keras_transfer.devices.strategy import on_processor
from keras_transfer.errors import KerasTransferError, SpecError, WeightsError
from keras_transfer.storage.model_files import OWN_WEIGHTS

_ANY_SIZE: Final = 224
"""Side of the images on which a graph that takes any size is examined, px."""

_NAMES_OF_CLASSIFIER: Final = (
    "image",
    "preprocess",
    "pooling",
    "hidden",
    "dropout",
    "logits",
    "units",
)
"""Names of layers that a classifier has besides its trunk."""

_TOP_KINDS: Final = (
    *("GlobalAveragePooling2D", "GlobalMaxPooling2D", "AveragePooling2D", "MaxPooling2D"),
    *("Flatten", "Reshape", "Permute", "Concatenate", "Dense", "Conv2D", "Dropout", "Rescaling"),
    *("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"),
    *("BatchNormalization", "LayerNormalization", "UnitNormalization"),
)
"""Classes of layers that may be on top of the last feature map."""


@dataclass(frozen=True, eq=False)
class ModelGraph:
    """The builder of a network whose layers are in a file.

    `network` has them in one flat graph, with the weights of the file; `image_size` is the side of
    the images that the file takes, px, None for any.
    """

    name: str
    network: keras.Model
    image_size: int | None

    def __call__(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Put the layers, with random weights, on scaled images `[B, S, S, C]`: feature map.

        Raises SpecError for images of a size that the graph does not take.
        """
        side = images.shape[1]
        if self.image_size not in (None, side):
            raise SpecError(
                f"{self.name} takes images of one size",
                expected=f"data.image_size={self.image_size}, as the file was saved",
                received=f"data.image_size={side}",
                fix=f"set data.image_size={self.image_size}, or save the model with an input of "
                "shape (None, None, channels), if its layers take any size",
            )
        try:
            calls = _trace(self.network, images, lambda layer: _copy(layer, layer.name))
            _check_channels(calls)
        except ValueError as error:
            raise SpecError(
                f"{self.name} cannot be built for images of {side} px and the given channels",
                expected="a size and channels that all of its layers take",
                received=_first_line(error),
                fix="choose another data.image_size, or data.channels as the file has them",
            ) from error
        return calls[-1].makes[0]

    def copy_weights(self, network: keras.Model) -> None:
        """Give a network that was built by this builder the weights of the file."""
        for layer in self.network.layers:
            if layer.weights:
                network.get_layer(layer.name).set_weights(layer.get_weights())


class OwnWeights(NamedTuple):
    """The weights in the model file itself."""

    file: Path
    origin: str = ""

    def find(self, backbone: Backbone) -> Path:  # noqa: ARG002
        return self.file

    def local(self) -> Path:
        return self.file


def read_backbone(file: Path, name: str, *, preprocess: str = "") -> Backbone:
    """The backbone in a `.keras` or `.h5` file of a whole model; `name` is shown for it.

    `preprocess` is the mode by which pixels are scaled for the first layer of the file; ''
    is for files with scaling inside: a `Preprocess`, which is used, or Rescaling or Normalization.

    Raises SpecError if the model cannot be a backbone, or its scaling is neither inside nor given;
    WeightsError if the file is damaged.
    """
    # Not on an accelerator: the copy in the trunk is there.
    with on_processor():
        model = _flatten(_load(file, name), name)
        size, channels = _input_shape(model, name)
        left_out = [layer for layer in model.layers if _is_left_out(layer)]
        own = [layer for layer in left_out if isinstance(layer, Preprocess)]
        planes = num_planes(own[0].mode, channels) if own else channels
        images = keras.Input((size or _ANY_SIZE, size or _ANY_SIZE, planes))
        calls = _trace(model, images, lambda layer: None if layer in left_out else layer)
        end = _find_feature_map(images, calls, name)
        mode, scaled_by = _find_scaling(own, calls[: end + 1], preprocess, name)
        if num_planes(mode, channels) != planes:
            raise _means_of_colours(name, mode, channels)
        trunk = keras.Model([images], calls[end].makes[0])
        network, copies = _copy_with_weights(trunk, name)
    top = _kinds(call.operation for call in calls[end + 1 :])
    idle = _kinds(layer for layer in left_out if not isinstance(layer, Preprocess))
    last = f"{calls[end].operation.name} ({calls[end].makes[0].shape[-1]} channels)"
    notes = [
        f"{name} ends with the feature map of {last}"
        + (f"; left out above it: {top}." if top else "."),
        f"Left out because they only act in training: {idle}." if idle else "",
        f"Pixels are scaled {scaled_by}.",
    ]
    return Backbone(
        name=name,
        builder=ModelGraph(name, network, size),
        preprocessing=mode,
        image_size=size or _ANY_SIZE,
        minimal_size=1,
        channels=channels,
        stages=find_stages(network.inputs[0], copies),
        weights={OWN_WEIGHTS: OwnWeights(file)},
        notes=tuple(filter(None, notes)),
    )


def read_network(file: Path, name: str, *, image_size: int) -> keras.Model:
    """The whole network in a file in one flat graph, without layers that only act in training.

    Args:
        name: shown for it.
        image_size: side of its images where the file takes any, px.

    Raises SpecError if it does not map square images to one output; WeightsError if it is damaged.
    """
    with on_processor():
        model = _flatten(_load(file, name), name)
        size, channels = _input_shape(model, name)
        side = size or image_size
        images = keras.Input((side, side, channels))

        def kept(layer: Any) -> Any:
            idle = isinstance(layer, keras.layers.Layer) and only_draws(layer)
            return None if idle else layer

        calls = _trace(model, images, kept)
        copy, _ = _copy_with_weights(keras.Model([images], calls[-1].makes[0]), name)
        return keras.Model(copy.inputs[0], copy.outputs[0], name=model.name)


def _load(file: Path, name: str) -> keras.Model:
    """The model in a file; SpecError or WeightsError if Keras cannot load it."""
    try:
        return keras.models.load_model(file, compile=False)
    except Exception as error:  # Keras raises many types of errors for a damaged file.
        raise _describe_failure(str(error), name) from error


def _describe_failure(message: str, name: str) -> KerasTransferError:
    """The error for a file that Keras cannot load, from its message."""
    if unknown := re.search(r"(?:locate (?:class|function)|Unknown layer:) '(\w+)'", message):
        return SpecError(
            f"{name} has the layer or function {unknown[1]}, which Keras does not know",
            expected="classes and functions of Keras, or registered ones",
            received=unknown[1],
            fix="put @keras.saving.register_keras_serializable() before its definition, import "
            "the module with it, and call keras_transfer.fine_tune in the same program",
        )
    if "`Lambda`" in message:
        return SpecError(
            f"{name} has a Lambda layer, whose code Keras does not run from a file",
            expected="layers that are saved without code",
            received="a Lambda layer",
            fix="save the model with Rescaling or a registered layer in its place",
        )
    if "No model config" in message:
        return SpecError(
            f"{name} has weights, but no network",
            expected="a whole model, written by model.save(...)",
            received="a file written by save_weights(...)",
            fix="set model.backbone to the name of its network and model.weights to the file",
        )
    return WeightsError(
        f"{name} cannot be read as a Keras model",
        expected="an intact file of a whole model, written by model.save(...)",
        received=message.partition("\n")[0][:200],
        fix="save or copy the file again",
    )


def _flatten(model: keras.Model, name: str) -> keras.Model:
    """The same layers in one graph, without models inside it."""
    flat = _as_graph(model, name)
    _make_names_unique(flat, {}, name)
    while any(isinstance(layer, keras.Model) for layer in flat.layers):
        flat = keras.models.clone_model(
            flat, clone_function=lambda layer: layer, call_function=_call_inside
        )
    return flat


def _call_inside(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a layer; of a model, call each of its layers instead."""
    return (layer.call if isinstance(layer, keras.Model) else layer)(*args, **kwargs)


def _as_graph(model: keras.Model, name: str) -> keras.Model:
    """A Sequential or functional model as a functional one; SpecError for others."""
    try:
        return keras.Model(model.inputs, model.outputs)
    except AttributeError as error:
        raise SpecError(
            f"{name} has no graph of layers",
            expected="a Sequential or functional model with a known input shape",
            received=f"{model.name}, a {type(model).__name__}",
            fix="build the network as keras.Model(inputs, outputs), copy the weights and save it",
        ) from error


def _make_names_unique(graph: keras.Model, owners: dict[str, Any], name: str) -> None:
    """Rename layers that have the name of another one in this graph or in models inside it."""
    for operation in graph.operations:
        if isinstance(operation, keras.layers.InputLayer) and owners:
            continue  # Models inside others lose their inputs.
        if owners.get(operation.name, operation) is not operation:
            operation.name = _free_name(operation.name, owners)
        owners[operation.name] = operation
        if isinstance(operation, keras.Model):
            _make_names_unique(_as_graph(operation, name), owners, name)


def _free_name(wanted: str, taken: Container[str]) -> str:
    """The name, or the first of name_2, name_3 … that is not taken."""
    names = chain([wanted], (f"{wanted}_{number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def _input_shape(graph: keras.Model, name: str) -> tuple[int | None, int]:
    """The side of the square images that the graph takes, None for any, and their channels.

    Raises SpecError for other inputs, and several outputs.
    """
    shapes = [tuple(tensor.shape) for tensor in graph.inputs]
    first, num_outputs = shapes[0], len(graph.outputs)
    if len(shapes) == num_outputs == 1 and len(first) == 4 and first[1] == first[2] and first[3]:
        return first[1], first[3]
    raise SpecError(
        f"{name} does not map square images to one output",
        expected="one input of shape (None, S, S, 3) or (None, None, None, 3), or with other "
        "channels, and one output",
        received=f"inputs {', '.join(map(str, shapes))}; {num_outputs} outputs",
        fix="save the part from the images to one feature map: keras.Model(image, features)",
    )


def _means_of_colours(name: str, mode: str, channels: int) -> SpecError:
    alike = [key for key, row in MODES.items() if len(row.means) == 1 and not row.is_grey]
    return SpecError(
        f"model.preprocess={mode} scales red, green and blue, and {name} has {channels} channels",
        expected=f"one of {', '.join(alike)}, which scale all channels alike",
        received=f"model.preprocess={mode}",
        fix="choose one of these, or save the model with its scaling inside",
    )


def _is_left_out(layer: keras.layers.Layer) -> bool:
    """Whether it scales pixels as the trunk does itself, or does nothing outside training."""
    if isinstance(layer, Preprocess):
        return True
    read, made = (keras.tree.flatten(tensors) for tensors in (layer.input, layer.output))
    return only_draws(layer) and [x.shape for x in read] == [x.shape for x in made]


def _trace(graph: keras.Model, images: keras.KerasTensor, make: Callable[[Any], Any]) -> list[Call]:
    """Call what `make` makes of each operation on the images; None leaves the operation out.

    The graph has a list of inputs, with one entry.
    """
    calls = []

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        made = make(operation)
        if made is None:
            return args[0]
        # Phases decide what trains; facts of a saved call, such as training=False, do not.
        kwargs.pop("training", None)
        outputs = made(*args, **kwargs)
        calls.append(Call(made, *map(keras.tree.flatten, ((args, kwargs), outputs))))
        return outputs

    keras.models.clone_model(
        graph, input_tensors=[images], clone_function=lambda one: one, call_function=call
    )
    return calls


def _check_channels(calls: Sequence[Call]) -> None:
    """Raise ValueError for a scaling of other channels, which Keras finds out only when it runs."""
    for call in calls:
        if isinstance(call.operation, keras.layers.Rescaling):
            found = {np.size(call.operation.scale), np.size(call.operation.offset)}
            channels = call.reads[0].shape[-1]
            if not found <= {1, channels}:
                raise ValueError(
                    f"{call.operation.name} scales {max(found)} channels, and gets {channels}"
                )


def _find_feature_map(images: keras.KerasTensor, calls: Sequence[Call], name: str) -> int:
    """The call whose output is the trunk's; SpecError if there is none, or more than a top above.

    That is the last feature map before a global pooling or a tensor of another rank.
    """
    below = takewhile(lambda pair: not _pools_globally(pair[1]), bridges(images, calls))
    end = max((number for number, _ in below), default=-1)
    if not any(map(weights_of, calls[: end + 1])):
        raise SpecError(
            f"{name} has no feature map",
            expected="layers from which a tensor (None, side, side, channels) comes, and on which "
            "all later layers depend",
            received=f"layers {_kinds(call.operation for call in calls)}",
            fix="save a convolutional network, or its part up to the last feature map",
        )
    above = (call.operation for call in calls[end + 1 :])
    others = [
        layer
        for layer in above
        if isinstance(layer, keras.layers.Layer) and type(layer).__name__ not in _TOP_KINDS
    ]
    if others:
        raise SpecError(
            f"{name} goes on after its last feature map with more than classification layers",
            expected=f"above {calls[end].operation.name} only pooling, dense layers and the like",
            received=_kinds(others),
            fix="save the part up to the features as a model of its own: "
            "keras.Model(model.input, model.get_layer('…').output).save(…)",
        )
    return end


def _pools_globally(call: Call) -> bool:
    """Whether the output has no positions left, and not because of a convolution."""
    layers, shape = keras.layers, call.makes[0].shape
    if len(shape) != 4:
        return True
    if isinstance(call.operation, layers.AveragePooling2D):
        return bool(shape[1] == 1 < call.reads[0].shape[1])
    return isinstance(call.operation, (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D))


def _find_scaling(
    own: Sequence[Preprocess], calls: Sequence[Call], declared: str, name: str
) -> tuple[str, str]:
    """The mode of `Preprocess`, and by what pixels are scaled; SpecError if that is not known."""
    num_below = next(number for number, call in enumerate(calls) if weights_of(call))
    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    inside = _kinds(
        call.operation for call in calls[:num_below] if isinstance(call.operation, kinds)
    )
    if own and declared in ("", own[0].mode):
        return own[0].mode, f"by the Preprocess of the file ('{own[0].mode}')"
    if own:
        raise SpecError(
            f"{name} scales pixels itself, in another way than model.preprocess",
            expected=f"model.preprocess={own[0].mode}, or nothing",
            received=f"model.preprocess={declared}",
            fix="leave out model.preprocess",
        )
    if declared:
        then = f", then by its own {inside}" if inside else ""
        return declared, f"as model.preprocess={declared} says{then}"
    if inside:
        return "none", f"by its own {inside}"
    raise SpecError(
        f"{name} does not scale pixels, and model.preprocess is not set",
        expected="Rescaling or Normalization at the input, or as model.preprocess one of "
        + ", ".join(MODES),
        received=f"an input into {_kinds(call.operation for call in calls[: num_below + 1])}",
        fix="set model.preprocess to the scaling that the network was trained with; 'none' if it "
        "was trained on pixels 0-255, or scales them by other layers",
    )


def _copy_with_weights(trunk: keras.Model, name: str) -> tuple[keras.Model, list[Call]]:
    """A copy of the trunk with a layer of its own for every call, and the calls of the copy."""
    originals: list[Any] = []
    names = list(_NAMES_OF_CLASSIFIER)

    def make(operation: Any) -> Any:
        if operation in originals and getattr(operation, "weights", []):
            raise SpecError(
                f"{name} calls the layer {operation.name} more than once",
                expected="one call for each layer with weights",
                received=f"a shared {type(operation).__name__}",
                fix="save a network without shared layers, or its part above them",
            )
        originals.append(operation)
        names.append(_free_name(operation.name, names))
        return _copy(operation, names[-1])

    images = keras.Input(trunk.inputs[0].shape[1:])
    try:
        calls = _trace(trunk, images, make)
        for original, call in zip(originals, calls, strict=True):
            if weights_of(call):
                call.operation.set_weights(original.get_weights())
    except (TypeError, ValueError) as error:
        if isinstance(error, KerasTransferError):
            raise
        raise SpecError(
            f"a layer of {name} cannot be built again from its settings",
            expected="get_config and from_config of every layer that give the same layer",
            received=f"{originals[-1].name}, a {type(originals[-1]).__name__}: "
            f"{_first_line(error)}",
            fix="correct get_config of this layer, and save the model again",
        ) from error
    return keras.Model([images], calls[-1].makes[0]), calls


def _copy(operation: Any, name: str) -> Any:
    """A new layer with the same settings, in the present precision; its weights are random."""
    if isinstance(operation, keras.layers.Normalization):
        return _as_rescaling(operation, name)
    config = {**operation.get_config(), "name": name}
    if isinstance(operation, keras.layers.Layer):
        given = {"dtype": keras.config.dtype_policy().name, "trainable": True}
        given |= {key: None for key in config if key.endswith("_regularizer")}
        config |= {key: value for key, value in given.items() if key in config}
    return type(operation).from_config(config)


def _as_rescaling(layer: keras.layers.Normalization, name: str) -> keras.layers.Rescaling:
    """The same scaling of each channel, with constants in place of variables."""
    means, variances = (np.asarray(x, np.float64) for x in (layer.mean, layer.variance))
    if means.size > 1 and means.size != means.shape[-1]:
        raise ValueError("it scales every position in its own way, and not every channel")
    deviations = np.maximum(np.sqrt(variances), keras.config.epsilon()).ravel()
    if layer.invert:
        return keras.layers.Rescaling(deviations.tolist(), means.ravel().tolist(), name=name)
    offsets = -means.ravel() / deviations
    return keras.layers.Rescaling((1 / deviations).tolist(), offsets.tolist(), name=name)


def _kinds(operations: Iterable[Any]) -> str:
    """The classes of operations, each once, in their order."""
    return ", ".join(dict.fromkeys(type(operation).__name__ for operation in operations))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
