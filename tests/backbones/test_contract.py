"""The contract every backbone keeps: over the whole table for structure, which needs no values,
and for one network of each family, cut where that saves minutes, for everything with values.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
import pytest

from keras_transfer.backbones.preprocess import TORCH_MEANS_RGB, TORCH_STDS_RGB
from keras_transfer.backbones.record import Backbone
from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.backbones.trunk import build_trunk, last_tensor, split_stages

REPRESENTATIVES = {
    "vgg16": "stage4",
    "resnet50": "stage3",
    "resnet50_v2": "stage3",
    "mobilenet_0.25": "",
    "mobilenet_v2_0.35": "",
    "mobilenet_v3_small_0.75": "",
    "efficientnet_b0": "stage3",
    "efficientnet_v2_b0": "stage3",
    "densenet121": "stage3",
    "inception_v3": "stage3",
    "inception_resnet_v2": "stage3",
    "xception": "",
    "nasnet_mobile": "",
    "convnext_tiny": "stage3",
}


@contextmanager
def without_values() -> Iterator[None]:
    """Networks built in here have shapes and names but no numbers, so that giants cost little."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    # Forgets the variables that wait for their values.
    keras.utils.clear_session(free_memory=False)


def keras_network(row: Backbone, side: int, **arguments) -> keras.Model:
    """The network as Keras builds it."""
    constructor = getattr(keras.applications, row.constructor)
    pixels = keras.Input((side, side, 3))
    return constructor(
        include_top=False, weights=None, input_tensor=pixels, **{**row.arguments, **arguments}
    )


def kinds(layers) -> list[tuple]:
    """What must be equal in every build: kinds of layers and shapes of variables, in order."""
    return [(type(layer).__name__, *(tuple(v.shape) for v in layer.weights)) for layer in layers]


def depends_through_one_tensor(network: keras.Model, below: set[int]) -> bool:
    """Whether the operations outside `below` read a single tensor from those inside."""
    inside = [operation for operation in network.operations if id(operation) in below]
    outputs = {id(tensor) for op in inside for tensor in keras.tree.flatten(op.output)}
    read = {
        id(tensor)
        for operation in network.operations
        if id(operation) not in below
        for tensor in keras.tree.flatten(operation.input)
    }
    return len(read & outputs) == 1


def operations_below(tensor: keras.KerasTensor, network: keras.Model) -> set[int]:
    return {id(operation) for operation in keras.Model(network.inputs, tensor).operations}


@pytest.mark.parametrize("row", BACKBONES.values(), ids=BACKBONES)
def test_stages_are_true_cuts_that_hold_every_variable_once(row):
    with without_values():
        network = keras_network(row, row.image_size)
        split = split_stages(network, row.stages)
        scaling = [layer for layer in network.layers if type(layer).__name__ in row.leave_out]
        found = {type(layer).__name__ for layer in network.layers}
        assert found & {"Dropout", "Normalization"} <= set(row.leave_out)
        left_out = {id(v) for layer in scaling for v in layer.variables}
        held = [id(v) for layers in split.values() for layer in layers for v in layer.variables]
        assert len(held) == len(set(held))
        assert set(held) | left_out == {id(variable) for variable in network.variables}

        for stage in row.stages[:-1]:
            tensor = last_tensor(network, stage)
            named = network.get_layer(stage.last_layer or stage.next_layer)
            assert not re.fullmatch(
                rf"{type(named).__name__}(_\d+)?", named.name.replace("_", ""), re.IGNORECASE
            )
            assert depends_through_one_tensor(network, operations_below(tensor, network))
            if stage.name != "stem":
                side = row.image_size / 2 ** int(stage.name[-1])
                assert abs(tensor.shape[1] - side) <= 2.5
        assert abs(network.output.shape[1] - row.image_size / 32) <= 2.5


@pytest.fixture(scope="module", params=REPRESENTATIVES.items(), ids=REPRESENTATIVES)
def built(request):
    """A trunk with random weights on the smallest pictures, with its row and its model."""
    name, last_stage = request.param
    row = BACKBONES[name]
    keras.utils.set_random_seed(0)
    inputs = keras.Input((row.minimal_size, row.minimal_size, 3), name="image")
    trunk = build_trunk(row, inputs, last_stage=last_stage, weights="none")
    return row, trunk, keras.Model(inputs, trunk.output)


def prepares_pixels(layer: keras.layers.Layer, row: Backbone) -> bool:
    """Whether a layer of Keras's network is one that a trunk leaves out or replaces."""
    scaling = (keras.layers.Rescaling, keras.layers.Normalization)
    return isinstance(layer, scaling) or type(layer).__name__ in row.leave_out


def random_pixels(row: Backbone) -> np.ndarray:
    shape = (2, row.minimal_size, row.minimal_size, 3)
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


def test_trunk_equals_keras_network_behind_its_own_preprocess_input(built):
    """The network is a second build in the process, and has the same stages but other names."""
    row, trunk, model = built
    own_scaling = (
        {"include_preprocessing": True} if "include_preprocessing" in row.arguments else {}
    )
    network = keras_network(row, row.minimal_size, **own_scaling)
    split = split_stages(network, row.stages)
    for stage, layers in trunk.stages.items():
        theirs = [layer for layer in split[stage] if not prepares_pixels(layer, row)]
        assert kinds(theirs) == kinds(layers)
        for old, new in zip(theirs, layers, strict=True):
            old.set_weights(new.get_weights())
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            layer.set_weights([np.array(TORCH_MEANS_RGB), np.square(TORCH_STDS_RGB), np.array(0)])
            layer.finalize_state()
    last = next(stage for stage in row.stages if stage.name == trunk.last_stage)
    reference = keras.Model(network.inputs[0], last_tensor(network, last))

    module = sys.modules[getattr(keras.applications, row.constructor).__module__]
    expected = np.asarray(reference(module.preprocess_input(random_pixels(row))))
    received = np.asarray(model(random_pixels(row)))
    np.testing.assert_allclose(received, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_frozen_trunk_is_bit_identical_after_a_fit(built):
    row, trunk, model = built
    outputs = keras.layers.Dense(2, name="logits")(
        keras.layers.GlobalAveragePooling2D()(trunk.output)
    )
    classifier = keras.Model(model.input, outputs)
    for layer in trunk.layers:
        layer.trainable = False
    before = [np.array(variable) for layer in trunk.layers for variable in layer.variables]
    head_before = classifier.get_layer("logits").get_weights()[1]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss, run_eagerly=True)
    classifier.fit(random_pixels(row), np.array([0, 0]), batch_size=2, verbose=0)
    after = [np.array(variable) for layer in trunk.layers for variable in layer.variables]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old)
    assert np.abs(classifier.get_layer("logits").get_weights()[1] - head_before).max() > 0


def test_trunk_when_saved_and_loaded_gives_the_same_output(built, tmp_path):
    row, _, model = built
    model.save(tmp_path / "trunk.keras")
    loaded = keras.models.load_model(tmp_path / "trunk.keras")
    pixels = random_pixels(row)
    np.testing.assert_array_equal(np.asarray(loaded(pixels)), np.asarray(model(pixels)))


def test_unfrozen_batchnorm_moves_in_the_same_fit():
    """So that the test of frozen trunks could fail."""
    inputs = keras.Input((32, 32, 3))
    row = BACKBONES["mobilenet_0.25"]
    trunk = build_trunk(row, inputs, last_stage="stage1", weights="none")
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(trunk.output))
    classifier = keras.Model(inputs, outputs)
    moving = classifier.get_layer("conv1_bn").moving_mean
    before = np.array(moving)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss, run_eagerly=True)
    classifier.fit(random_pixels(row), np.array([0, 1]), batch_size=2, verbose=0)
    assert np.abs(np.array(moving) - before).max() > 0
