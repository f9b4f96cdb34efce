"""A rebuilt classifier is the classifier that would have been built."""

import gc

import keras
import numpy as np
import pytest
from small_models import CLASS_NAMES, weights_by_stage

from keras_transfer.models.classifier import Rebuilder, build_classifier
from keras_transfer.specs import ModelSpec
from keras_transfer.tasks.single_label import SingleLabel

SPEC = ModelSpec(backbone="small", last_stage="stage2", weights="none")
OTHER_HEAD = ModelSpec(**{**vars(SPEC), "head": "mlp", "dropout": 0.0})
GIVEN = {"image_size": 32, "task": SingleLabel(CLASS_NAMES)}


def assert_equal(one, other):
    theirs = weights_by_stage(other)
    assert list(one.stages) == list(other.stages)
    for stage, values in weights_by_stage(one).items():
        for value, expected in zip(values, theirs[stage], strict=True):
            np.testing.assert_array_equal(value, expected)
    names = [v.path for v in one.model.variables]
    assert names == [v.path for v in other.model.variables]
    assert [v.trainable for v in one.model.variables] == [
        v.trainable for v in other.model.variables
    ]


def spoil(classifier):
    for stage in classifier.stages:
        for layer in classifier.stages[stage]:
            layer.trainable = False
        for variable in classifier.variables_of(stage):
            if "int" not in variable.dtype:
                variable.assign(np.full(variable.shape, 7.0))


@pytest.mark.parametrize("spec", [SPEC, OTHER_HEAD])
def test_after_any_training_a_classifier_is_as_new(spec):
    keras.utils.clear_session()
    expected = build_classifier(spec, **GIVEN, seed=3)
    keras.utils.clear_session()
    rebuild = Rebuilder()
    spoil(rebuild(OTHER_HEAD, **GIVEN, seed=3))
    assert_equal(rebuild(spec, **GIVEN, seed=3), expected)


def test_the_trunk_is_built_once_for_one_seed_only():
    rebuild = Rebuilder()
    first = rebuild(SPEC, **GIVEN, seed=0)
    assert rebuild(OTHER_HEAD, **GIVEN, seed=0).trunk is first.trunk
    other = rebuild(SPEC, **GIVEN, seed=1)
    assert other.trunk is not first.trunk
    keras.utils.clear_session()
    theirs = weights_by_stage(build_classifier(SPEC, **GIVEN, seed=1))
    for stage, values in weights_by_stage(other).items():
        for value, expected in zip(values, theirs[stage], strict=True):
            np.testing.assert_array_equal(value, expected)


def test_a_rebuilt_classifier_answers_like_the_built_one():
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    rebuild = Rebuilder()
    spoil(rebuild(SPEC, **GIVEN, seed=0))
    ours = rebuild(SPEC, **GIVEN, seed=0).model(pixels)
    theirs = build_classifier(SPEC, **GIVEN, seed=0).model(pixels)
    np.testing.assert_array_equal(ours, theirs)


def test_heads_that_are_gone_are_not_kept():
    rebuild = Rebuilder()
    rebuild(SPEC, **GIVEN, seed=0)
    gc.collect()
    counts = []
    for _ in range(3):
        for _ in range(10):
            rebuild(SPEC, **GIVEN, seed=0)
        gc.collect()
        counts.append(sum(isinstance(item, keras.Model) for item in gc.get_objects()))
    assert counts[0] == counts[1] == counts[2]
