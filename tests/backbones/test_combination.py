"""Several backbones side by side, in one flat graph."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_backbone import SMALL, build_small

import keras_transfer as kt
from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.backbones.record import Stage
from keras_transfer.backbones.registry import BACKBONES, get_backbone, register_backbone
from keras_transfer.backbones.trunk import build_trunk
from keras_transfer.errors import KerasTransferError, SpecError, WeightsError
from keras_transfer.export.formats.source import inference_graph
from keras_transfer.features.phase_inputs import find_head_cut
from keras_transfer.features.prefix import Prefix
from keras_transfer.models.classifier import build_classifier
from keras_transfer.models.cuts import find_cut
from keras_transfer.specs import ModelSpec
from keras_transfer.tasks.single_label import SingleLabel

OTHER = dataclasses.replace(
    SMALL, name="other", preprocessing="caffe", stages=(Stage("low", "small1_pool"), Stage("high"))
)
COARSE = dataclasses.replace(
    SMALL,
    name="coarse",
    builder=lambda pixels: keras.layers.MaxPooling2D(2)(build_small(pixels)),
    stages=(Stage("stage1"),),
)
BOTH = "small+other"


@pytest.fixture(scope="module", autouse=True)
def _others():
    with pytest.MonkeyPatch.context() as patch:
        for row in (OTHER, COARSE):
            patch.setitem(BACKBONES, row.name, row)
        yield


IMAGES = keras.Input((16, 16, 3))


@pytest.fixture(scope="module")
def trunk():
    keras.utils.set_random_seed(1)
    return build_trunk(get_backbone(BOTH), IMAGES, weights="none")


def random_pixels() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (3, 16, 16, 3)).astype("float32")


def test_the_feature_map_is_those_of_the_parts_with_their_own_preprocessing(trunk):
    pixels = random_pixels()
    both = keras.Model(IMAGES, trunk.output)
    modes = [layer.mode for layer in both.layers if isinstance(layer, Preprocess)]
    assert modes == ["tf", "caffe"]
    for number, part in enumerate((SMALL, OTHER)):
        images = keras.Input((16, 16, 3))
        alone = build_trunk(part, images, weights="none")
        for layer in alone.layers:
            layer.set_weights(both.get_layer(f"{part.name}_{layer.name}").get_weights())
        expected = keras.Model(images, alone.output).predict(pixels, verbose=0)
        found = both.predict(pixels, verbose=0)[..., 16 * number : 16 * (number + 1)]
        np.testing.assert_array_equal(found, expected)


def test_stages_count_from_the_top_and_have_every_variable_once(trunk):
    assert list(trunk.stages) == ["stage1", "stage2", "stage3"]
    names = [{layer.name.partition("_")[0] for layer in stage} for stage in trunk.stages.values()]
    assert names == [{"small"}, {"small", "other"}, {"small", "other", "concatenated"}]
    variables = [id(v) for layer in trunk.layers for v in layer.variables]
    assert len(variables) == len(set(variables)) == 2 * 18


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("small+small", {}, SpecError, "set model.backbone=small"),
        ("small+smal", {}, SpecError, "did you mean small"),
        ("small+", {}, SpecError, "no backbone called"),
        (BOTH, {"preprocess": "tf"}, SpecError, "leave out model.preprocess"),
        (BOTH, {"last_stage": "stage2"}, SpecError, "cannot cut a combination"),
        (BOTH, {"weights": "a.weights.h5"}, WeightsError, "no weights that all parts"),
        ("small+coarse", {}, SpecError, "small: 2 x 2, coarse: 1 x 1"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, error, text):
    spec = ModelSpec(backbone=name, **{"weights": "none", **options})
    with pytest.raises(error, match=text.replace("+", r"\+")) as caught:
        build_classifier(spec, image_size=16, task=SingleLabel(("a", "b")), seed=0)
    assert isinstance(caught.value, KerasTransferError)


def test_a_name_of_a_combination_cannot_be_registered():
    with pytest.raises(SpecError, match="cannot be registered"):
        register_backbone(dataclasses.replace(SMALL, name="a+b"))


def test_features_are_stored_above_all_parts_and_converted_graphs_agree():
    spec = ModelSpec(backbone=BOTH, weights="none")
    task = SingleLabel(("a", "b", "c"))
    classifier = build_classifier(spec, image_size=16, task=task, seed=0)
    for stage, layers in classifier.stages.items():
        for layer in layers:
            layer.trainable = stage == "head"
    assert find_cut(classifier.model).shape == (32,)
    pixels = np.round(random_pixels())
    probabilities = keras.ops.softmax(classifier.model(pixels)).numpy()
    (converted,) = inference_graph(classifier.model, task)(tf.constant(pixels, tf.uint8))
    np.testing.assert_allclose(converted, probabilities, atol=1e-5)


def test_pooled_features_are_those_of_the_parts_alone():
    task = SingleLabel(("a", "b", "c"))
    spec = ModelSpec(backbone=BOTH, weights="none")
    whole = find_head_cut(build_classifier(spec, image_size=16, task=task, seed=0))
    pixels = random_pixels().astype("uint8")
    joined = Prefix([whole], precision="float32")(pixels, 3)[0]
    for number, (name, part) in enumerate(zip(("small", "other"), whole.parts, strict=True)):
        spec = ModelSpec(backbone=name, weights="none")
        classifier = build_classifier(spec, image_size=16, task=task, seed=1)
        for layer in classifier.trunk.layers:
            layer.set_weights(whole.model.get_layer(f"{name}_{layer.name}").get_weights())
        alone = find_head_cut(classifier)
        assert not alone.parts
        assert part.fingerprint == alone.fingerprint
        features = Prefix([alone], precision="float32")(pixels, 3)[0]
        expected = joined[:, 16 * number : 16 * (number + 1)]
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_run_is_trained_exported_and_explained(digits_folder, tmp_path):
    run = kt.fine_tune(
        digits_folder,
        backbone=BOTH,
        weights="none",
        image_size=16,
        resize="squash",
        output=tmp_path / "run",
        reporter=None,
    )
    assert run.evaluation.accuracy > 0.3
    image = next(digits_folder.rglob("*.png"))
    assert run.predict([image])[0].label
    assert run.explain(image)
    card = json.loads((tmp_path / "run" / "export" / "1" / "card.json").read_text())
    assert card["backbone"] == BOTH
    assert "for another part" in card["preprocessing"]
