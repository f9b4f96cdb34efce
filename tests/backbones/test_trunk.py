"""Building trunks: cuts, sizes, memory and seeds."""

import gc

import keras
import numpy as np
import pytest

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.backbones.registry import get_backbone
from keras_transfer.backbones.trunk import build_trunk
from keras_transfer.errors import SpecError


def random_trunk(name: str, *, last_stage: str = "", side: int = 32):
    """A trunk with random weights, and the model on its input."""
    inputs = keras.Input((side, side, 3), name="image")
    trunk = build_trunk(get_backbone(name), inputs, last_stage=last_stage, weights="none")
    return trunk, keras.Model(inputs, trunk.output)


def test_resnet50_through_stage3_has_its_known_size():
    trunk, model = random_trunk("resnet50", last_stage="stage3")
    assert tuple(trunk.output.shape) == (None, 4, 4, 512)
    assert model.count_params() == 1_460_096
    assert list(trunk.stages) == ["stem", "stage2", "stage3"]
    assert trunk.last_stage == "stage3"
    assert trunk.stages["stage3"][-1].name == "conv3_block4_out"


def test_vgg16_through_stage3_is_its_first_three_blocks():
    trunk, model = random_trunk("vgg16", last_stage="stage3")
    assert tuple(trunk.output.shape) == (None, 4, 4, 256)
    assert model.count_params() == 1_735_488
    assert [layer.name for layer in trunk.layers][-1] == "block3_pool"


def test_trunk_is_flat_behind_the_callers_input():
    _, model = random_trunk("mobilenet_0.25", last_stage="stage2")
    assert isinstance(model.layers[1], Preprocess)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert model.layers[0].name == "image"


def test_trunk_for_bytes_equals_trunk_for_floats():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    outputs = []
    for dtype in ("uint8", "float32"):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((32, 32, 3), dtype=dtype)
        row = get_backbone("small")
        trunk = build_trunk(row, inputs, last_stage="stage2", weights="none")
        outputs.append(np.asarray(keras.Model(inputs, trunk.output)(pixels.astype(dtype))))
    np.testing.assert_array_equal(*outputs)


def test_random_weights_depend_on_the_seed_alone():
    values = []
    for seed in (3, 4, 3):
        keras.utils.set_random_seed(seed)
        _, model = random_trunk("small", last_stage="stage1")
        values.append(model.get_weights()[0])
    np.testing.assert_array_equal(values[0], values[2])
    assert np.abs(values[0] - values[1]).max() > 0.01


def test_cut_trunk_equals_the_whole_one_at_the_cut():
    keras.utils.set_random_seed(5)
    whole, model = random_trunk("small")
    cut, cut_model = random_trunk("small", last_stage="stage2")
    middle = keras.Model(model.input, whole.stages["stage2"][-1].output)
    cut_model.set_weights(middle.get_weights())
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(np.asarray(cut_model(pixels)), np.asarray(middle(pixels)))
    assert [layer.name for layer in cut.layers] == [layer.name for layer in middle.layers[2:]]


def test_cut_trunk_lets_go_of_the_layers_above_the_cut():
    def layers_alive() -> int:
        gc.collect()
        return sum(type(thing) is keras.layers.MaxPooling2D for thing in gc.get_objects())

    before = layers_alive()
    trunk, _ = random_trunk("small", last_stage="stage1")
    kept = sum(isinstance(layer, keras.layers.MaxPooling2D) for layer in trunk.layers)
    assert kept == 1
    assert layers_alive() - before == kept


def test_trunk_under_mixed_precision_computes_in_half():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        trunk, model = random_trunk("small", last_stage="stage1")
    finally:
        keras.config.set_dtype_policy("float32")
    assert trunk.output.dtype == "bfloat16"
    assert {variable.dtype for variable in model.weights} == {"float32"}


def test_unknown_stage_names_the_stages_and_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'stage3'") as caught:
        random_trunk("resnet50", last_stage="stage_3")
    assert "stem, stage2, stage3, stage4, stage5" in caught.value.expected


def test_stage_that_a_family_lacks_is_refused():
    with pytest.raises(SpecError, match="not a stage of nasnet_mobile"):
        random_trunk("nasnet_mobile", last_stage="stage3")


@pytest.mark.parametrize(("name", "side"), [("vgg16", 31), ("inception_v3", 74), ("xception", 70)])
def test_too_small_images_are_refused(name, side):
    with pytest.raises(SpecError, match=rf"data.image_size.*{name}") as caught:
        random_trunk(name, side=side)
    assert caught.value.received == f"{side} px"
