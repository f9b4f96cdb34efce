"""A backbone that does not come from keras.applications: one record in the registry."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from small_backbone import SMALL, build_small

from keras_transfer.backbones import registry
from keras_transfer.backbones.record import Backbone
from keras_transfer.errors import WeightsError
from keras_transfer.models.classifier import build_classifier
from keras_transfer.models.cuts import find_cut
from keras_transfer.models.folding import fold
from keras_transfer.specs import ModelSpec
from keras_transfer.tasks.single_label import SingleLabel

CLASS_NAMES = ("cat", "dog")


class FileWeights(NamedTuple):
    """Weights in a file that is here already, as those of an installed package are."""

    file: Path
    origin: str = "this test"

    def find(self, backbone: Backbone) -> Path:
        return self.file

    def local(self) -> Path | None:
        return self.file


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> keras.Model:
    """Registers the backbone; the network whose weights its file has."""
    keras.utils.set_random_seed(1)
    pixels = keras.Input((16, 16, 3))
    network = keras.Model(pixels, build_small(pixels))
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(np.linspace(-0.5, 0.5, layer.moving_mean.shape[0]))
            layer.moving_variance.assign(np.linspace(0.5, 2.0, layer.moving_mean.shape[0]))
    network.save_weights(tmp_path / "small.weights.h5")
    weights = {"package": FileWeights(tmp_path / "small.weights.h5")}
    row = dataclasses.replace(SMALL, name="own", weights=weights)
    monkeypatch.setitem(registry.BACKBONES, row.name, row)
    return network


def random_pixels() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype("float32")


def classifier_of(**fields: str):
    spec = ModelSpec(backbone="own", **{"weights": "package", **fields})
    return build_classifier(spec, image_size=16, task=SingleLabel(tuple(CLASS_NAMES)), seed=0)


def test_own_backbone_makes_a_classifier_with_its_stages_and_weights(network):
    classifier = classifier_of()
    assert list(classifier.stages) == ["stage1", "stage2", "stage3", "head"]
    assert classifier.trunk.layers[-1].name == "small3_pool"
    features = keras.Model(classifier.model.input, classifier.trunk.output)
    pixels = random_pixels()
    np.testing.assert_allclose(
        np.asarray(features(pixels)), np.asarray(network(pixels / 127.5 - 1)), atol=1e-5
    )


def test_own_backbone_is_cut_and_folded_like_any_other(network):
    classifier = classifier_of()
    pixels = random_pixels()
    expected = np.asarray(classifier.model(pixels))
    for layer in classifier.stages["stage1"]:
        layer.trainable = False
    cut = find_cut(classifier.model)
    assert (cut.name, cut.shape) == ("small1_pool", (8, 8, 4))
    below = keras.Model(classifier.model.input, cut.tensor)
    halves = np.asarray(cut.tail()(below(pixels)))
    np.testing.assert_allclose(halves, expected, atol=1e-5)
    folded = fold(classifier.model)
    kinds = [type(layer).__name__ for layer in folded.layers]
    assert "BatchNormalization" not in kinds
    np.testing.assert_allclose(np.asarray(folded(pixels)), expected, atol=1e-4)


def test_own_backbone_is_kept_through_one_stage(network):
    classifier = classifier_of(last_stage="stage1")
    assert list(classifier.stages) == ["stage1", "head"]
    assert classifier.trunk.output.shape[1:] == (8, 8, 4)


def test_weights_that_a_backbone_does_not_have_name_those_it_has(network):
    with pytest.raises(WeightsError, match="names no weights of own") as caught:
        classifier_of(weights="imagenet")
    assert caught.value.expected.startswith("package, embedded, none")
