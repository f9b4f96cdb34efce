"""Pretraining learns, and what it embeds is what a classifier loads."""

import json

import keras
import numpy as np
import pytest

from keras_transfer.backbones.registry import get_backbone
from keras_transfer.backbones.trunk import build_trunk
from keras_transfer.experiments.pretraining import LetterData, embed, pretrain
from keras_transfer.specs import PhaseSpec, PretrainSpec

SPEC = PretrainSpec(
    backbone="small",
    last_stage="stage2",
    num_letters=512,
    batch_size=32,
    phase=PhaseSpec(
        name="letters", epochs=2, unfreeze="stage1", learning_rate=1e-2, train_batchnorm=True
    ),
)


def test_validation_letters_are_not_training_letters():
    data = LetterData(seed=0, num_letters=64, image_size=16, batch_size=32)
    seen = {image.tobytes() for batch, _ in data.training(range(2)) for image in batch.numpy()}
    images, one_hot = data.validation()
    assert len(seen) == 128
    assert not seen & {image.tobytes() for image in images}
    assert one_hot.sum() == len(images)


@pytest.mark.slow
def test_embedded_trunk_is_the_trained_one_in_half_precision(tmp_path):
    classifier, result = pretrain(SPEC)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    file = embed(classifier, result, SPEC, command="the command", folder=tmp_path)
    record = json.loads(file.with_suffix(".json").read_text())
    assert record["command"] == "the command"
    assert record["steps"] == 32
    assert record["source_accuracy"] == pytest.approx(
        result.history[result.best_epoch - 1]["val_accuracy"], abs=1e-4
    )
    keras.utils.clear_session()
    inputs = keras.Input((32, 32, 3))
    trunk = build_trunk(
        get_backbone("small"),
        inputs,
        last_stage="stage2",
        weights=str(file),
    )
    trained = [v for stage in trunk.stages for v in classifier.variables_of(stage)]
    loaded = [v for layers in trunk.stages.values() for layer in layers for v in layer.variables]
    for one, other in zip(trained, loaded, strict=True):
        half = np.asarray(one.numpy(), np.float16).astype(np.float32)
        np.testing.assert_array_equal(half, other.numpy())
