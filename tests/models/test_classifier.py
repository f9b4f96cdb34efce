"""The classifier: flat, staged, raw pixels in and float32 logits out."""

import keras
import numpy as np
import pytest
from small_models import CLASS_NAMES, make_classifier

from keras_transfer.errors import SpecError
from keras_transfer.models.classifier import build_classifier
from keras_transfer.specs import ModelSpec
from keras_transfer.storage.class_names import model_name
from keras_transfer.tasks.single_label import SingleLabel


def _build(**fields) -> keras.Model:
    model = ModelSpec(backbone="vgg16", last_stage="stage2", weights="none", **fields)
    return build_classifier(model, image_size=32, task=SingleLabel(CLASS_NAMES), seed=0).model


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"pooling": "avg"}, 128 * 10 + 10),
        ({"pooling": "max"}, 128 * 10 + 10),
        ({"pooling": "flatten"}, 8 * 8 * 128 * 10 + 10),
        ({"head": "mlp", "hidden_units": 32}, 128 * 32 + 32 + 32 * 10 + 10),
    ],
)
def test_head_has_the_parameters_its_spec_says(fields, parameters):
    with_head = _build(dropout=0.0, **fields).count_params()
    trunk = 1792 + 36928 + 73856 + 147584
    assert with_head - trunk == parameters


def test_graph_is_flat_and_every_variable_in_one_stage():
    classifier = make_classifier("resnet50")
    assert not any(isinstance(layer, keras.Model) for layer in classifier.model.layers)
    in_stages = [v.path for stage in classifier.stages for v in classifier.variables_of(stage)]
    assert sorted(in_stages) == sorted(v.path for v in classifier.model.variables)
    assert list(classifier.stages) == ["stem", "stage2", "head"]


def test_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (make_classifier(seed=seed).model for seed in (1, 1, 2))
    for one, two in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first.get_layer("logits").kernel, other.get_layer("logits").kernel)


def test_model_carries_the_class_order_in_its_name():
    assert make_classifier().model.name == model_name(CLASS_NAMES)
    assert model_name(CLASS_NAMES) != model_name(CLASS_NAMES[::-1])


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_logits_are_float32_under_every_policy(precision):
    keras.config.set_dtype_policy(precision)
    try:
        model = make_classifier().model
        logits = model(np.full((1, 32, 32, 3), 255.0, np.float32))
    finally:
        keras.config.set_dtype_policy("float32")
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert logits.shape == (1, 10)


def test_saved_file_holds_no_optimizer_and_answers_the_same(tmp_path):
    classifier = make_classifier("vgg16")
    model = classifier.model
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    pixels = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype(np.float32)
    model.fit(pixels, np.eye(10, dtype=np.float32)[:8], verbose=0)
    classifier.save(tmp_path / "model.keras")
    size = (tmp_path / "model.keras").stat().st_size
    assert size < 4 * model.count_params() * 1.2 + 100_000
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.name == model.name
    np.testing.assert_array_equal(loaded(pixels), model(pixels))


def test_trunk_runs_without_dropout_so_that_a_frozen_one_is_a_function():
    model = ModelSpec(backbone="efficientnet_b0", last_stage="stage3", weights="none", dropout=0.0)
    classifier = build_classifier(model, image_size=32, task=SingleLabel(CLASS_NAMES), seed=0)
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in classifier.model.layers)


def test_last_is_the_highest_stage_of_the_trunk_whatever_its_name():
    assert make_classifier().from_stage("last") == ["stage2", "head"]
    assert make_classifier().from_stage("last_two") == ["stage1", "stage2", "head"]
    resnet = list(make_classifier("resnet50").stages)
    assert make_classifier("resnet50").from_stage("last_two") == resnet[-3:]


def test_unknown_stage_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="stage2"):
        make_classifier().from_stage("stage_2")
