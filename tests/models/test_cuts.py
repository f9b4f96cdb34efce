"""A cut has all that changes above it and nothing else, in every kind of graph."""

import keras
import numpy as np
import pytest
from small_models import make_classifier

from keras_transfer.models.classifier import Classifier, build_classifier
from keras_transfer.models.cuts import find_cut, fingerprint
from keras_transfer.specs import ModelSpec, PhaseSpec
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.phases import apply_phase

PIXELS = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)


def build(backbone: str, last_stage: str = "stage3", **fields) -> Classifier:
    model = ModelSpec(backbone=backbone, last_stage=last_stage, weights="none", **fields)
    return build_classifier(model, image_size=32, task=SingleLabel(("a", "b")), seed=0)


@pytest.mark.parametrize(
    ("backbone", "unfreeze", "name"),
    [
        ("vgg16", "head", "pooling"),
        ("vgg16", "stage3", "block2_pool"),
        ("resnet50", "stage3", "conv2_block3_out"),
        ("mobilenet_v2_0.35", "stage3", "block_2_add"),
        ("mobilenet_v3_small", "stage3", "expanded_conv_project_bn"),
        ("densenet121", "head", "pooling"),
    ],
)
def test_prefix_and_tail_are_the_classifier_and_only_the_tail_learns(backbone, unfreeze, name):
    classifier = build(backbone)
    apply_phase(classifier, PhaseSpec(unfreeze=unfreeze))
    cut = find_cut(classifier.model)
    assert cut.name == name
    prefix, tail = keras.Model(classifier.model.input, cut.tensor), cut.tail()
    assert prefix.trainable_variables == []
    assert not any("int" in variable.dtype for variable in cut.variables)
    ours = {id(variable) for variable in tail.trainable_variables}
    assert ours == {id(variable) for variable in classifier.model.trainable_variables}
    expected = classifier.model(PIXELS)
    np.testing.assert_allclose(tail(prefix(PIXELS)), expected, rtol=1e-5, atol=1e-6)


def test_nothing_lies_below_a_network_that_learns_from_its_first_layer():
    classifier = make_classifier("vgg16")
    apply_phase(classifier, PhaseSpec(unfreeze="stage1"))
    assert find_cut(classifier.model) is None


def test_batchnorm_that_learns_stays_above_the_cut():
    classifier = make_classifier("resnet50")
    apply_phase(classifier, PhaseSpec(unfreeze="stage2"))
    frozen = find_cut(classifier.model)
    apply_phase(classifier, PhaseSpec(unfreeze="stage2", train_batchnorm=True))
    learning = find_cut(classifier.model)
    assert frozen.name == learning.name == "pool1_pool"
    assert not any("bn" in v.path and "conv1" not in v.path for v in learning.variables)


def test_dropout_stays_above_the_cut_even_below_a_frozen_layer():
    classifier = build("vgg16", "stage2", head="mlp")
    for layer in classifier.model.layers:
        layer.trainable = layer.name == "logits"
    assert find_cut(classifier.model).name == "hidden"


def test_a_cut_takes_the_smallest_map_above_the_last_frozen_weights():
    inputs = keras.Input((8, 8, 3))
    mapped = keras.layers.Conv2D(4, 3, padding="same", name="frozen", trainable=False)(inputs)
    padded = keras.layers.ZeroPadding2D(2, name="larger")(mapped)
    outputs = keras.layers.Conv2D(2, 3, name="learning")(padded)
    assert find_cut(keras.Model(inputs, outputs)).name == "frozen"


def test_a_tensor_beside_which_another_path_runs_is_no_cut():
    inputs = keras.Input((8, 8, 3))
    stem = keras.layers.Conv2D(4, 3, padding="same", name="stem", trainable=False)(inputs)
    side = keras.layers.Conv2D(4, 3, padding="same", name="side", trainable=False)(stem)
    outputs = keras.layers.Dense(2, name="learning")(keras.layers.add([stem, side], name="sum"))
    assert find_cut(keras.Model(inputs, outputs)).name == "sum"


def test_fingerprints_follow_weights_and_settings_but_no_names():
    one, same = (make_classifier().model for _ in range(2))
    assert fingerprint(one) == fingerprint(same)
    renamed = keras.models.clone_model(
        one,
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), "name": f"x_{layer.name}"}
        ),
    )
    renamed.set_weights(one.get_weights())
    assert fingerprint(renamed) == fingerprint(one)
    assert fingerprint(make_classifier(seed=1).model) != fingerprint(one)
    assert fingerprint(make_classifier(dropout=0.5).model) != fingerprint(one)
    same.get_layer("logits").bias.assign_add([0] * 9 + [1e-7])
    assert fingerprint(same) != fingerprint(one)


def test_a_saved_model_keeps_its_fingerprint(tmp_path):
    from keras_transfer.backbones.preprocess import Preprocess

    classifier = make_classifier("mobilenet_0.25")
    # Where dropout's random numbers have got to is no part of what a network says.
    classifier.model.get_layer("dropout").seed_generator.state.assign([7, 7])
    classifier.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(
        tmp_path / "model.keras", custom_objects={"Preprocess": Preprocess}
    )
    assert fingerprint(loaded) == fingerprint(classifier.model)
