"""Residual adapters: small bottlenecks between the blocks of a trunk, which leaves it unchanged.

    x → x + up(relu(down(x))),  down 1 × 1 from C channels to w, up 1 × 1 back to C

`up` begins with zeros, so that the network with new adapters has the outputs of the one without.
One adapter has 2 C w + w + C weights.

Source: N. Houlsby et al., "Parameter-efficient transfer learning for NLP", ICML 2019, on the
bottleneck; S.-A. Rebuffi et al., "Efficient parametrization of multi-domain deep neural networks",
CVPR 2018, on 1 × 1 convolutions between the blocks of a network of images.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import keras

from keras_transfer.backbones.graph import Call, bridges, calls_of, weights_of
from keras_transfer.backbones.record import Trunk
from keras_transfer.backbones.stages import stages_from
from keras_transfer.errors import SpecError
from keras_transfer.specs import HEAD

_NAME: Final = re.compile(r"adapter(\d+)_(down|up|sum)")
_MIXING: Final = (keras.layers.Conv2D, keras.layers.SeparableConv2D)
"""Layers that make new channels out of all that they read: a block has one at least."""


@dataclass(frozen=True)
class Adapters:
    """Which adapters a trunk gets: after each block of the stages from `lowest` up.

    Together they have at most `share` of the trunk's weights. `field` is the field of the spec that
    names the stage.
    """

    lowest: str
    share: float
    field: str


class _Site(NamedTuple):
    """A place of an adapter: after this operation, in this stage."""

    call: Call
    stage: str

    @property
    def channels(self) -> int:
        return int(self.call.makes[0].shape[-1])


def insert_adapters(
    trunk: Trunk, images: keras.KerasTensor, inputs: keras.KerasTensor, adapters: Adapters
) -> Trunk:
    """A copy of a trunk that reads `images`, with its weights and with adapters, on `inputs`.

    A copy, because every layer of a classifier is called once.

    Raises:
        SpecError: no such stage, no block to put an adapter behind, or too small a share.
    """
    network = keras.Model([images], trunk.output)
    sites = _find_sites(network, trunk, adapters)
    widths = _widths([site.channels for site in sites], trunk.num_parameters, adapters)
    first = 1 + max((int(found[1]) for found in map(_of_adapter, trunk.layers) if found), default=0)
    made = {
        site.call.operation.name: _layers(number, site.channels, width)
        for number, (site, width) in enumerate(zip(sites, widths, strict=True), first)
    }

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = operation(*args, **kwargs)
        if operation.name not in made:
            return outputs
        down, up, total = made[operation.name]
        return total([outputs, up(down(outputs))])

    flat = keras.models.clone_model(network, input_tensors=[inputs], call_function=call)
    for layer in network.layers[1:]:
        flat.get_layer(layer.name).set_weights(layer.get_weights())
    stages = {}
    for stage, layers in trunk.stages.items():
        names = {layer.name for layer in layers}
        for site in sites:
            if site.stage == stage:
                names.update(layer.name for layer in made[site.call.operation.name])
        stages[stage] = tuple(layer for layer in flat.layers if layer.name in names)
    added = tuple(layer.name for layers in made.values() for layer in layers)
    return replace(trunk, output=flat.output, stages=stages, added=added)


def _of_adapter(layer: keras.layers.Layer) -> re.Match[str] | None:
    """Whether it belongs to an adapter, as in the trunk of an earlier run."""
    return _NAME.fullmatch(layer.name)


def _layers(number: int, channels: int, width: int) -> tuple[keras.layers.Layer, ...]:
    """Down, up and sum of one adapter, not yet called."""
    name = f"adapter{number}"
    return (
        keras.layers.Conv2D(width, 1, activation="relu", name=f"{name}_down"),
        keras.layers.Conv2D(channels, 1, kernel_initializer="zeros", name=f"{name}_up"),
        keras.layers.Add(name=f"{name}_sum"),
    )


def _find_sites(network: keras.Model, trunk: Trunk, adapters: Adapters) -> list[_Site]:
    """The ends of the blocks of the stages from `lowest` up."""
    names = stages_from(adapters.lowest, [*trunk.stages, HEAD], field=adapters.field)
    sites = [site for site in _ends(network, trunk) if site.stage in names]
    if not sites:
        raise SpecError(
            f"{trunk.backbone.name} has no block that an adapter could follow",
            expected="unfrozen stages with convolutions",
            received=f"{adapters.field}={adapters.lowest}",
            fix=f"set {adapters.field} to 'last' or a lower stage, or use method 'supervised'",
        )
    return sites


def _ends(network: keras.Model, trunk: Trunk) -> Iterator[_Site]:
    """The tensors that end a block: all later layers depend on each of them alone.

    A block ends where the next convolution or padding begins, if it has a convolution of its own
    that mixes channels. Depthwise convolutions do not, so that a separable one is a single block.
    """
    stage_of = {id(layer): stage for stage, layers in trunk.stages.items() for layer in layers}
    calls = calls_of(network)[1:]
    is_bridge = dict(bridges(network.inputs[0], calls))
    end, stage, mixes = None, "", False
    for number, call in enumerate(calls):
        if end and _begins(call):
            yield end
            end, mixes = None, False
        stage = stage_of.get(id(call.operation), stage)
        mixes = mixes or isinstance(call.operation, _MIXING)
        if mixes and number in is_bridge and len(call.makes[0].shape) == 4:
            end = _Site(call, stage)
    if end:
        yield end


def _begins(call: Call) -> bool:
    """Whether it has a kernel, or is the padding of a layer with one."""
    has_kernel = any(len(variable.shape) > 1 for variable in weights_of(call))
    return has_kernel or isinstance(call.operation, keras.layers.ZeroPadding2D)


def num_weights(channels: Sequence[int], widths: Sequence[int]) -> int:
    """The weights of adapters of these widths behind blocks of so many channels."""
    return sum(2 * c * w + w + c for c, w in zip(channels, widths, strict=True))


def _widths(channels: Sequence[int], num_trunk: int, adapters: Adapters) -> list[int]:
    """The largest widths in proportion to the channels, 1 at least, that keep to the share."""
    most = max(channels)

    def proportional(widest: int) -> list[int]:
        return [max(1, widest * one // most) for one in channels]

    def fits(widest: int) -> bool:
        return num_weights(channels, proportional(widest)) <= adapters.share * num_trunk

    if not fits(1):
        least = num_weights(channels, proportional(1))
        raise SpecError(
            "the narrowest adapters have more weights than their share allows",
            expected=f"a share of at least {least / num_trunk:.3f} of the backbone's {num_trunk:,} "
            f"weights for {len(channels)} adapters",
            received=f"{adapters.share:g}",
            fix=f"raise share, or set {adapters.field} to a higher stage",
        )
    return proportional(max(widest for widest in range(1, most + 1) if fits(widest)))
