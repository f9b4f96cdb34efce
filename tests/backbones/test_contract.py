"""The contract every backbone keeps.

Structure is checked on networks without values, which cost little, whatever their width. What
needs values is checked on one network of each family, cut where its upper stages only repeat the
lower ones; ResNets, MobileNetV2 and InceptionV3 have no kind of layer that others lack. The deepest
and widest relatives (`GIANTS`), and the values of the two networks with the most layers, NASNet and
InceptionResNetV2, would take longer than all others together.
"""

import functools
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np
import pytest

from keras_transfer.backbones.applications import Application
from keras_transfer.backbones.record import Backbone, Stage
from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.backbones.scaling import MODES
from keras_transfer.backbones.trunk import build_trunk, last_tensor, split_stages

GIANTS = {
    "resnet152",
    "resnet152_v2",
    "densenet169",
    "densenet201",
    "convnext_base",
    "convnext_large",
    "convnext_xlarge",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_v2_m",
    "efficientnet_v2_l",
    "nasnet_large",
}


def graph_of(row: Backbone) -> tuple:
    """All that the graph depends on: every argument but the width of the layers."""
    if not isinstance(row.builder, Application):
        return (row.name,)
    return row.builder.constructor, *sorted(
        pair for pair in row.builder.arguments if pair[0] != "alpha"
    )


BUILT = {graph_of(BACKBONES[name]): name for name in reversed(BACKBONES) if name not in GIANTS}
CHECKED = list(BUILT.values())
REPRESENTATIVES = {
    "vgg16": "",
    "mobilenet_0.25": "stage2",
    "mobilenet_v3_small_0.75": "stage3",
    "efficientnet_b0": "stage2",
    "efficientnet_v2_b0": "stage2",
    "efficientnet_lite0": "stage2",
    "densenet121": "stage2",
    "xception": "stage3",
    "convnext_tiny": "stage2",
}
SAME_KINDS_OF_LAYERS = {"mobilenet_0.25", "efficientnet_v2_b0", "efficientnet_lite0"}
"""Those whose layers, once built, are all of kinds that the other representatives have."""

Kinds = list[tuple]


@dataclass(frozen=True)
class Cut:
    """What is true of the tensor a stage ends with."""

    side: int
    is_only_way_up: bool
    goes_by_a_lasting_name: bool


@dataclass(frozen=True)
class Structure:
    """What there is to check of a network without values."""

    held: list[int]
    variables: set[int]
    kinds: dict[str, Kinds]
    cuts: dict[str, Cut]


@contextmanager
def without_values() -> Iterator[None]:
    """Networks built in here have shapes and names but no numbers."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    keras.utils.clear_session()  # forgets the variables that wait for their values


def whole_network(row: Backbone, side: int, **arguments) -> keras.Model:
    """The network as Keras builds it, or, if Keras has none, as the row does."""
    pixels = keras.Input((side, side, 3))
    if not isinstance(row.builder, Application):
        return keras.Model(pixels, row.builder(pixels))
    constructor = getattr(keras.applications, row.builder.constructor)
    return constructor(
        include_top=False,
        weights=None,
        input_tensor=pixels,
        **{**dict(row.builder.arguments), **arguments},
    )


def kinds(layers: Iterable[keras.layers.Layer]) -> Kinds:
    """What must be equal in every build: kinds of layers and shapes of variables, in order."""
    return [(type(layer).__name__, *(tuple(v.shape) for v in layer.weights)) for layer in layers]


def prepares_pixels(layer: keras.layers.Layer, row: Backbone) -> bool:
    """Whether a layer of Keras's network is one that a trunk leaves out or replaces."""
    scaling = (keras.layers.Rescaling, keras.layers.Normalization)
    return isinstance(layer, scaling) or type(layer).__name__ in row.leave_out


def describe_cut(network: keras.Model, stage: Stage) -> Cut:
    tensor = last_tensor(network, stage)
    below = {id(operation) for operation in keras.Model(network.inputs, tensor).operations}
    above = [operation for operation in network.operations if id(operation) not in below]
    made = {id(output) for op in above for output in keras.tree.flatten(op.output)}
    read = {id(source) for op in above for source in keras.tree.flatten(op.input)}
    named = stage.last_layer or stage.next_layer
    kind = type(network.get_layer(named)).__name__ if named else ""
    numbered = re.fullmatch(rf"{kind}(_?\d+)?", named.replace("_", ""), re.IGNORECASE)
    return Cut(
        side=tensor.shape[1],
        is_only_way_up=read - made == {id(tensor)} or stage.name == "stage5",
        goes_by_a_lasting_name=not numbered or stage.name == "stage5",
    )


@functools.cache
def structure(name: str) -> Structure:
    """Build a network without values and take down what is true of it."""
    row = BACKBONES[name]
    with without_values():
        network = whole_network(row, row.image_size)
        split = split_stages(network, row.stages)
        own = {
            stage: [layer for layer in layers if not prepares_pixels(layer, row)]
            for stage, layers in split.items()
        }
        trunk = [layer for layer in network.layers if not prepares_pixels(layer, row)]
        return Structure(
            held=[id(v) for layers in own.values() for layer in layers for v in layer.variables],
            variables={id(v) for layer in trunk for v in layer.variables},
            kinds={stage: kinds(layers) for stage, layers in own.items()},
            cuts={stage.name: describe_cut(network, stage) for stage in row.stages},
        )


def test_stages_are_the_same_for_every_width():
    rows = [row for name, row in BACKBONES.items() if name not in GIANTS]
    # Rows that tests register later are not among those built here.
    rows = [row for row in rows if isinstance(row.builder, Application)]
    assert len(rows) > 30
    for row in rows:
        assert row.stages == BACKBONES[BUILT[graph_of(row)]].stages


@pytest.mark.parametrize("name", CHECKED)
def test_stages_hold_every_variable_once(name):
    found = structure(name)
    assert len(found.held) == len(set(found.held))
    assert set(found.held) == found.variables
    assert all(layers for layers in found.kinds.values())


@pytest.mark.parametrize("name", CHECKED)
def test_stages_are_true_cuts_at_their_resolution(name):
    for stage, cut in structure(name).cuts.items():
        assert cut.is_only_way_up, stage
        assert cut.goes_by_a_lasting_name, stage
        if stage != "stem":
            side = BACKBONES[name].image_size / 2 ** int(stage[-1])
            assert abs(cut.side - side) <= 2.5, stage


@pytest.mark.parametrize("name", CHECKED)
def test_noise_in_a_trunk_is_left_out(name):
    found = {kind for layers in structure(name).kinds.values() for kind, *_ in layers}
    assert not found & {"Dropout", "SpatialDropout2D", "GaussianNoise", "StochasticDepth"}


@pytest.fixture(scope="module", params=REPRESENTATIVES)
def built(request):
    """A trunk with random weights on the smallest images, with its row and its model."""
    row = BACKBONES[request.param]
    keras.utils.set_random_seed(0)
    inputs = keras.Input((row.minimal_size, row.minimal_size, 3), name="image")
    last_stage = REPRESENTATIVES[request.param]
    trunk = build_trunk(row, inputs, last_stage=last_stage, weights="none")
    return row, trunk, keras.Model(inputs, trunk.output)


def random_pixels(row: Backbone) -> np.ndarray:
    shape = (2, row.minimal_size, row.minimal_size, 3)
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


@pytest.mark.slow
def test_second_build_in_the_process_has_the_same_stages(built):
    row, trunk, _ = built
    again = structure(row.name).kinds
    assert {stage: kinds(layers) for stage, layers in trunk.stages.items()} == {
        stage: again[stage] for stage in trunk.stages
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "built",
    [name for name in REPRESENTATIVES if isinstance(BACKBONES[name].builder, Application)],
    indirect=True,
)
def test_trunk_equals_keras_network_behind_its_own_preprocess_input(built):
    row, trunk, model = built
    if "include_preprocessing" in dict(row.builder.arguments) or row.leave_out:
        reference = keras_network_with_weights_of(trunk)
    else:  # the layers are Keras's own, only what feeds them is ours
        reference = keras.Model(model.get_layer("preprocess").output, trunk.output)
    module = sys.modules[getattr(keras.applications, row.builder.constructor).__module__]
    expected = np.asarray(reference(module.preprocess_input(random_pixels(row))))
    received = np.asarray(model(random_pixels(row)))
    np.testing.assert_allclose(received, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def keras_network_with_weights_of(trunk) -> keras.Model:
    """Keras's network, scaling its own input, through the trunk's last stage."""
    row = trunk.backbone
    own_scaling = (
        {"include_preprocessing": True}
        if "include_preprocessing" in dict(row.builder.arguments)
        else {}
    )
    network = whole_network(row, row.minimal_size, **own_scaling)
    split = split_stages(network, row.stages)
    for stage, layers in trunk.stages.items():
        theirs = [layer for layer in split[stage] if not prepares_pixels(layer, row)]
        for old, new in zip(theirs, layers, strict=True):
            old.set_weights(new.get_weights())
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            layer.set_weights(
                [np.array(MODES["torch"].means), np.square(MODES["torch"].deviations), np.array(0)]
            )
            layer.finalize_state()
    last = next(stage for stage in row.stages if stage.name == trunk.last_stage)
    return keras.Model(network.inputs[0], last_tensor(network, last))


def fit_one_step(model: keras.Model, trunk, pixels: np.ndarray) -> keras.Model:
    """Put a head on the trunk and train it on one batch of a single class."""
    pooled = keras.layers.GlobalAveragePooling2D()(trunk.output)
    classifier = keras.Model(model.inputs[0], keras.layers.Dense(2, name="logits")(pooled))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss, run_eagerly=True)
    classifier.fit(pixels, np.zeros(len(pixels)), verbose=0)
    return classifier


def values(trunk) -> list[np.ndarray]:
    return [np.array(variable) for layer in trunk.layers for variable in layer.variables]


def test_frozen_trunk_is_bit_identical_after_a_fit(built):
    row, trunk, model = built
    for layer in trunk.layers:
        layer.trainable = False
    before = values(trunk)
    classifier = fit_one_step(model, trunk, random_pixels(row))
    for old, new in zip(before, values(trunk), strict=True):
        np.testing.assert_array_equal(new, old)
    assert np.abs(classifier.get_layer("logits").bias).max() > 0


def test_unfrozen_trunk_moves_in_the_same_fit():
    """So that the test of frozen trunks could fail."""
    row = BACKBONES["mobilenet_0.25"]
    inputs = keras.Input((32, 32, 3))
    trunk = build_trunk(row, inputs, last_stage="stage1", weights="none")
    before = values(trunk)
    fit_one_step(keras.Model(inputs, trunk.output), trunk, random_pixels(row))
    assert all(np.abs(new - old).max() > 0 for old, new in zip(before, values(trunk), strict=True))


REBUILT = [name for name in REPRESENTATIVES if name not in SAME_KINDS_OF_LAYERS]


@pytest.mark.slow
@pytest.mark.parametrize("built", REBUILT, indirect=True)
def test_trunk_when_saved_and_loaded_gives_the_same_output(built, tmp_path):
    row, _, model = built
    model.save(tmp_path / "trunk.keras")
    loaded = keras.models.load_model(tmp_path / "trunk.keras")
    pixels = random_pixels(row)
    np.testing.assert_array_equal(np.asarray(loaded(pixels)), np.asarray(model(pixels)))
