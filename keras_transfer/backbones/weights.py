"""Weights from files: loading, and errors for files that do not fit.

HDF5 files and those of PyTorch have a whole network and are loaded before it is cut into a trunk;
archives and the models of earlier runs may end at the same stage and are loaded after that.
"""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_transfer.backbones.archives import load_embedded
from keras_transfer.backbones.model_file import ModelGraph, OwnWeights
from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.backbones.record import Backbone, Trunk
from keras_transfer.backbones.scaling import MODES, in_grey
from keras_transfer.backbones.torch_files import read_tensors
from keras_transfer.errors import WeightsError, enumerated

_TORCH_NAMES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def load_network(network: keras.Model, file: Path, *, backbone: Backbone) -> bool:
    """Load a file into the whole network; False for one of a trunk, which is loaded later.

    Those of the whole network are HDF5 files, whose input scaling must be that of `Preprocess`,
    files of PyTorch, and the model file that the backbone was read from.

    Raises WeightsError if the file is damaged, has another network, or scales its input otherwise.
    """
    if OwnWeights(file) in backbone.weights.values():
        assert isinstance(backbone.builder, ModelGraph)
        backbone.builder.copy_weights(network)
        return True
    loaders = {".h5": _load_hdf5, ".pth": _load_torch}
    if file.suffix not in loaders:
        return False
    loaders[file.suffix](network, file, backbone)
    return True


def _load_torch(network: keras.Model, file: Path, backbone: Backbone) -> None:
    """Load a file of PyTorch, all of it but the classification layer, by the names of layers."""
    tensors = {
        _key(name): _channels_last(tensor)
        for name, tensor in read_tensors(file).items()
        if not name.startswith("_fc.") and not name.endswith(".num_batches_tracked")
    }
    variables = {
        f"{layer.name}.{_TORCH_NAMES[variable.name]}": variable
        for layer in network.layers
        for variable in layer.weights
    }
    expected = {key: tuple(variable.shape) for key, variable in variables.items()}
    received = {key: tensor.shape for key, tensor in tensors.items()}
    if received != expected:
        raise WeightsError(
            f"{file} does not hold the weights of {backbone.name}",
            expected=_describe([*expected.values()]),
            received=_compare([*received.values()], [*expected.values()]),
            fix="give a file of the same network",
        )
    for key, variable in variables.items():
        variable.assign(tensors[key])


def _key(name: str) -> str:
    """'_blocks.0._bn1.bias' as 'blocks_0_bn1.bias': a layer's name and a tensor's."""
    module, _, tensor = name.rpartition(".")
    return f"{module.removeprefix('_').replace('._', '_').replace('.', '_')}.{tensor}"


def _channels_last(tensor: np.ndarray) -> np.ndarray:
    """A kernel [out, in, h, w] as [h, w, in, out], depthwise [out, 1, h, w] as [h, w, out, 1].

    Other tensors are unchanged.
    """
    if tensor.ndim != 4:
        return tensor
    return tensor.transpose((2, 3, 0, 1) if tensor.shape[1] == 1 else (2, 3, 1, 0))


def _load_hdf5(network: keras.Model, file: Path, backbone: Backbone) -> None:
    """Load an HDF5 file, whose input scaling must be that of `Preprocess`."""
    try:
        with warnings.catch_warnings():
            # Keras only warns where layers keep their random weights.
            warnings.simplefilter("error", UserWarning)
            network.load_weights(file)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, UserWarning) as error:
        expected = [tuple(variable.shape) for variable in network.weights]
        raise WeightsError(
            f"{file} does not hold the weights of {backbone.name}",
            expected=f"{backbone.name} without its top, {_describe(expected)}",
            received=_describe_file(file, expected),
            fix="give a file of the same network, saved with include_top=False",
        ) from error
    _check_scaling(network, file)


def load_trunk(trunk: Trunk, file: Path) -> None:
    """Load an archive or the model of an earlier run into the cut trunk; WeightsError."""
    if file.suffix == ".npz":
        load_embedded(trunk, file)
    else:
        _load_run(trunk, file)


def _load_run(trunk: Trunk, file: Path) -> None:
    """Take the trunk's weights out of a `.keras` classifier that reaches its last stage.

    Layers are matched by their order, because some families get other layer numbers in every
    build, and must agree in class and shapes. Raises WeightsError.
    """
    try:
        model = keras.models.load_model(file, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(
            f"{file} cannot be read as a Keras model",
            expected="model.keras of an earlier run",
            received=str(error).splitlines()[0][:200],
            fix="give the path of a run's model.keras",
        ) from error
    modes = [layer.mode for layer in model.layers if isinstance(layer, Preprocess)]
    # Turning images grey changes no weights.
    is_scaled_alike = [*map(in_grey, modes)] == [in_grey(trunk.backbone.preprocessing)]
    target = [layer for layer in trunk.layers if layer.weights]
    source = [layer for layer in model.layers if layer.weights][: len(target)]
    if not is_scaled_alike or [*map(_kind, source)] != [*map(_kind, target)]:
        expected = [tuple(variable.shape) for layer in target for variable in layer.weights]
        received = [tuple(variable.shape) for variable in model.weights]
        raise WeightsError(
            f"{file} does not hold {trunk.backbone.name} through {trunk.last_stage}",
            expected=f"{_describe(expected)}, preprocessing {trunk.backbone.preprocessing!r}",
            received=f"{_compare(received, expected)}, preprocessing {modes or 'of another kind'}",
            fix="set model.backbone and model.last_stage to those of the run that wrote it",
        )
    for old, new in zip(source, target, strict=True):
        new.set_weights(old.get_weights())


def _kind(layer: keras.layers.Layer) -> tuple[Any, ...]:
    """The class and shapes that two layers must share to exchange weights."""
    return (type(layer).__name__, *(tuple(variable.shape) for variable in layer.weights))


def _check_scaling(network: keras.Model, file: Path) -> None:
    """Raise WeightsError if the file scales the network's input differently from `Preprocess`.

    Only EfficientNet's files have a scaling, in a Normalization layer. The ImageNet files have the
    standard deviation in place of the variance, which Keras corrects in a further layer; other
    files may have the variance. Networks trained from scratch have neither.
    """
    means, deviations = MODES["torch"].means, MODES["torch"].deviations
    for layer in network.layers:
        if not (isinstance(layer, keras.layers.Normalization) and layer.weights):
            continue
        mean, variance = (np.ravel(array) for array in layer.get_weights()[:2])
        fits = any(np.allclose(std, deviations, atol=1e-4) for std in (variance, variance**0.5))
        if not (fits and np.allclose(mean, means, atol=1e-4)):
            raise WeightsError(
                f"{file} was trained on pixels with another scaling",
                expected=f"mean {means}, standard deviation {deviations}",
                received=f"mean {mean.tolist()}, variance {variance.tolist()}",
                fix="give weights that were trained on ImageNet's scaling",
            )


def _describe_file(file: Path, expected: list[tuple[int, ...]]) -> str:
    """The content of an HDF5 file, and its difference from the expected arrays."""
    shapes: list[tuple[int, ...]] = []

    def collect(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.name.split("/")[1] != "optimizer":
            shapes.append(item.shape)

    try:
        with h5py.File(file) as content:
            content.visititems(collect)
    except (OSError, RuntimeError) as error:
        return f"a damaged file, or not an HDF5 file ({error})"
    return _compare(shapes, expected)


def _describe(shapes: list[tuple[int, ...]]) -> str:
    """A line of text that describes a list of arrays."""
    return f"{len(shapes)} arrays of {sum(int(np.prod(s)) for s in shapes):,} numbers"


def _compare(received: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> str:
    """A line of text on the received arrays, with the shapes that only one side has."""
    text = _describe(received)
    for where, here, there in (("file", received, expected), ("network", expected, received)):
        alone = sorted((Counter(here) - Counter(there)).elements(), key=len, reverse=True)
        if alone:
            listed = enumerated([*map(str, alone)], 3)
            text += f"; {len(alone)} only in the {where}: {listed}"
    return text
