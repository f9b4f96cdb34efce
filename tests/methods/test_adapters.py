"""Adapters: no effect at first, only they and the head move, and their number has a closed form."""

import keras
import numpy as np
import pytest
from fitting_small import fit_small
from listener import Listener
from small_models import make_classifier, weights_by_stage

from keras_transfer.backbones.adapters import Adapters
from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.features.phase_inputs import find_cuts
from keras_transfer.specs import CacheSpec, PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.storage.run_folder import RunFolder

ADAPTERS = PhaseSpec(
    name="adapters",
    epochs=2,
    unfreeze="stage2",
    learning_rate=1e-2,
    method="adapters",
    method_options={"share": 0.1},
)
SPEC = RunSpec(
    phases=(PhaseSpec(epochs=1), ADAPTERS),
    training=TrainingSpec(refit=False, rollback=False),
    cache=CacheSpec(precision="float32"),
)


def train(tmp_path, changes=None, **arguments):
    return fit_small(override(SPEC, changes or {}), tmp_path, Listener(), **arguments)


def adapted(lowest, share, backbone="small"):
    return make_classifier(backbone, adapters=Adapters(lowest, share, "phases.1.unfreeze"))


def values_of(model):
    return {v.path: np.array(v) for v in model.variables if "int" not in v.dtype}


@pytest.mark.parametrize(
    ("backbone", "lowest", "share"), [("small", "stage1", 0.1), ("mobilenet_0.25", "stem", 0.25)]
)
def test_a_network_with_new_adapters_has_the_outputs_of_the_one_without(backbone, lowest, share):
    plain, classifier = make_classifier(backbone), adapted(lowest, share, backbone)
    before, values = values_of(plain.model), values_of(classifier.model)
    new = {path for path in values if path.startswith("adapter")}
    assert new
    assert values.keys() - new == before.keys()
    logits = classifier.model.get_layer("logits")
    logits.set_weights(plain.model.get_layer("logits").get_weights())
    images = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(plain.model(images, training=False))
    found = keras.ops.convert_to_numpy(classifier.model(images, training=False))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_their_number_has_a_closed_form_and_keeps_to_the_share(share):
    classifier = adapted("stage1", share)
    layers = {layer.name: layer for layer in classifier.trunk.layers}
    size = 0
    for number, (stage, channels) in enumerate([("stage1", 4), ("stage2", 8)], start=1):
        names = [f"adapter{number}_{part}" for part in ("down", "up", "sum")]
        assert {layer.name for layer in classifier.stages[stage]} >= set(names)
        width = layers[names[0]].filters
        own = sum(layers[name].count_params() for name in names)
        assert own == 2 * channels * width + width + channels
        size += own
    num_plain = make_classifier().trunk.num_parameters
    assert classifier.trunk.num_parameters == num_plain + size
    assert size <= share * num_plain
    # One channel more at the widest one would be too many.
    assert size + 2 * 8 + 1 > share * num_plain


def test_exactly_the_adapters_of_unfrozen_stages_and_the_head_move(tmp_path):
    start = make_classifier(adapters=Adapters("stage2", 0.1, "phases.1.unfreeze"))
    classifier, (_, outcome) = train(tmp_path)
    before, after = values_of(start.model), values_of(classifier.model)
    moved = {path for path, value in after.items() if not np.array_equal(value, before[path])}
    expected = {p for p in after if p.startswith(("adapter", "logits"))}
    assert moved == expected
    assert outcome.num_trainable == sum(after[path].size for path in expected)


def test_frozen_stages_below_have_the_stored_features_of_the_network_without():
    plain, classifier = make_classifier(), adapted("stage2", 0.1)
    found, expected = (find_cuts(one, SPEC.phases, 0)[1] for one in (classifier, plain))
    assert found.name == "small1_pool of small"
    assert found.fingerprint == expected.fingerprint


@pytest.mark.parametrize("num_epochs", [2, 3])
def test_a_resumed_run_has_the_same_bits(num_epochs, tmp_path):
    expected = weights_by_stage(train(tmp_path)[0])
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    train(tmp_path, run=run, num_epochs=num_epochs)
    resumed = weights_by_stage(train(tmp_path, run=run)[0])
    for stage, values in expected.items():
        for one, other in zip(values, resumed[stage], strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_undone_phase_leaves_the_network_without_adapters(tmp_path):
    """At a rate that harms, the weights before the phase are kept: the adapters have no effect."""
    changes = {"phases.1.learning_rate": 10.0, "training.rollback": True}
    classifier, (_, outcome) = train(tmp_path, changes)
    assert not outcome.kept
    for layer in classifier.model.layers:
        if layer.name.endswith("_up"):
            assert not any(np.any(weight) for weight in layer.get_weights())


def test_phases_that_cannot_have_adapters_are_refused(tmp_path):
    with pytest.raises(SpecError, match="between frozen blocks"):
        train(tmp_path, {"phases.1.unfreeze": "head"})
    with pytest.raises(SpecError, match="between frozen blocks"):
        train(tmp_path, {"phases.1.train_batchnorm": True})
    with pytest.raises(SpecError, match="different adapters"):
        train(tmp_path, {"phases.0.method": "adapters", "phases.0.unfreeze": "stage1"})
    with pytest.raises(SpecError, match=r"a share of at least 0\.055"):
        train(tmp_path, {"phases.1.method_options.share": 0.01})
