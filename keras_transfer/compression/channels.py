"""Which channels of a network belong together, and a smaller network without some of them.

Each channel of a tensor has a number. A convolution or dense layer makes new channels; activations,
poolings and depthwise convolutions pass them on; a sum makes those of its terms one; a
concatenation has those of all its parts. So a channel can be removed everywhere it occurs, through
residual sums and depthwise convolutions, and what is left is a smaller dense network.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.compression.network import Network, Step

_MIXING: Final = (keras.layers.Conv2D, keras.layers.Dense)
"""Layers that make new channels out of all that they read."""

_COUPLING: Final = (
    *(keras.layers.Softmax, keras.layers.UnitNormalization),
    *(keras.layers.Permute, keras.layers.RepeatVector),
)
"""Layers without weights that do not treat every channel for itself."""


def mixes(operation: Any) -> bool:
    """Whether each output channel is a sum over all input channels, plus a bias."""
    is_grouped = getattr(operation, "groups", 1) > 1
    is_special = isinstance(operation, (keras.layers.DepthwiseConv2D, keras.layers.Conv2DTranspose))
    return isinstance(operation, _MIXING) and not is_grouped and not is_special


@dataclass(eq=False)
class Channels:
    """The channels of all tensors of a network.

    `of` gives the numbers of a tensor's channels, int [C], by the tensor's id; use `find` for the
    number that all channels have which are one. Numbers in `fixed` cannot be removed.
    """

    of: dict[int, np.ndarray] = field(default_factory=dict)
    fixed: set[int] = field(default_factory=set)
    _parents: list[int] = field(default_factory=list)

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """The numbers that stand for these channels, int of the same shape."""
        return np.array([self._root(int(number)) for number in numbers.ravel()], int).reshape(
            numbers.shape
        )

    def new(self, size: int) -> np.ndarray:
        """Numbers of new channels."""
        first = len(self._parents)
        self._parents.extend(range(first, first + size))
        return np.arange(first, first + size)

    def join(self, some: np.ndarray, others: np.ndarray) -> None:
        """Make pairs of channels one."""
        for one, other in zip(some, others, strict=True):
            self._parents[self._root(int(one))] = self._root(int(other))

    def fix(self, numbers: np.ndarray) -> None:
        """Mark channels that cannot be removed."""
        self.fixed.update(map(int, numbers))

    def is_fixed(self, roots: np.ndarray) -> np.ndarray:
        """Whether each of these cannot be removed, bool of the same shape."""
        fixed = {self._root(number) for number in self.fixed}
        return np.array([int(root) in fixed for root in roots.ravel()], bool).reshape(roots.shape)

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = number = self._parents[self._parents[number]]
        return number


def find_channels(network: Network) -> Channels:
    """The channels of a network without BatchNormalization (`models.folding.fold`).

    Those of images, and around layers that are not known to treat every channel for itself, are
    fixed.
    """
    channels = Channels()
    image = network.model.inputs[0]
    channels.of[id(image)] = channels.new(image.shape[-1])
    channels.fix(channels.of[id(image)])
    for step in network.steps:
        made = _passed_on(step, channels)
        if made is None:
            made = channels.new(step.makes[0].shape[-1])
            if not mixes(step.operation):
                for numbers in [made, *(channels.of[id(tensor)] for tensor in step.reads)]:
                    channels.fix(numbers)
        channels.of[id(step.makes[0])] = made
    return channels


def _passed_on(step: Step, channels: Channels) -> np.ndarray | None:
    """The channels that a step makes of those that it reads; None for new ones."""
    operation, size = step.operation, step.makes[0].shape[-1]
    read = [channels.of[id(tensor)] for tensor in step.reads]
    if mixes(operation) or len(step.makes) > 1:
        return None
    if isinstance(operation, keras.layers.DepthwiseConv2D):
        return read[0] if operation.depth_multiplier == 1 else None
    if isinstance(operation, keras.layers.Flatten):
        return np.tile(read[0], size // len(read[0]))
    if isinstance(operation, keras.layers.Concatenate) and operation.axis in (
        -1,
        len(step.makes[0].shape) - 1,
    ):
        return np.concatenate(read)
    if isinstance(operation, keras.layers.Reshape):
        return read[0] if len(read[0]) == size else None
    is_known = not getattr(operation, "weights", []) and not isinstance(operation, _COUPLING)
    if not is_known or not _is_alone(step) or any(len(one) != size for one in read):
        return None
    for other in read[1:]:
        channels.join(other, read[0])
    return read[0]


def _is_alone(step: Step) -> bool:
    """Whether no argument is a constant with a value for each channel."""
    leaves = keras.tree.flatten((step.args, step.kwargs))
    arrays = [leaf for leaf in leaves if not isinstance(leaf, keras.KerasTensor)]
    return all(np.ndim(leaf) == 0 for leaf in arrays if hasattr(leaf, "shape"))


def blocks(network: Network, channels: Channels) -> Iterator[np.ndarray]:
    """Channels that are removed by the same share: int [C] each, of numbers that stand for them.

    The outputs of one layer are in one block, and so are those of layers that share a channel.
    """
    groups: list[set[int]] = []
    for step in network.steps:
        if not mixes(step.operation):
            continue
        found = set(channels.find(channels.of[id(step.makes[0])]).tolist())
        touching = [group for group in groups if group & found]
        groups = [group for group in groups if not group & found]
        groups.append(found.union(*touching))
    for group in groups:
        roots = np.array(sorted(group))
        if not channels.is_fixed(roots).any():
            yield roots


Masks = dict[str, tuple[np.ndarray, np.ndarray]]
"""Which of the channels that a layer reads and makes are kept, bool each, by its name."""


def kept_channels(network: Network, channels: Channels, removed: set[int]) -> Masks:
    """The masks of all steps.

    Args:
        removed: numbers that stand for channels (`Channels.find`).
    """

    def kept(tensor: keras.KerasTensor) -> np.ndarray:
        roots = channels.find(channels.of[id(tensor)])
        return np.array([int(root) not in removed for root in roots], bool)

    return {
        step.operation.name: (kept(step.reads[0]), kept(step.makes[0])) for step in network.steps
    }


def without(network: Network, masks: Masks) -> Network:
    """A copy with fewer channels; the layers that read or make the others have fewer weights.

    Convolutions and dense layers all have a bias in it.
    """

    def make(operation: Any) -> Any:
        return _smaller(operation, *masks[operation.name])

    copy = Network.copied(network.model, make)
    for step in copy.steps:
        if getattr(step.operation, "weights", []):
            original = network.model.get_layer(step.operation.name)
            step.operation.set_weights(_kept_weights(original, *masks[step.operation.name]))
    return copy


def _smaller(operation: Any, read: np.ndarray, made: np.ndarray) -> Any:
    """The layer with random weights for the channels that are kept."""
    config = operation.get_config()
    if mixes(operation):
        key = "units" if isinstance(operation, keras.layers.Dense) else "filters"
        config |= {key: int(made.sum()), "use_bias": True}
    elif isinstance(operation, keras.layers.Reshape):
        config["target_shape"] = (*config["target_shape"][:-1], int(made.sum()))
    elif isinstance(operation, keras.layers.Rescaling):
        for key in ("scale", "offset"):
            if np.ndim(config[key]):
                config[key] = np.asarray(config[key])[read]
    return type(operation).from_config(config)


def _kept_weights(layer: Any, read: np.ndarray, made: np.ndarray) -> list[np.ndarray]:
    """The weights of a layer for the channels that are kept."""
    weights = layer.get_weights()
    if mixes(layer):
        kernel, *rest = weights
        bias = rest[0] if rest else np.zeros(len(made), "float32")
        return [kernel[..., read, :][..., made], bias[made]]
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        kernel, *rest = weights
        return [kernel[:, :, read], *(bias[made] for bias in rest)]
    return list(weights)
