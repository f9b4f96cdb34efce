"""Surgical fine-tuning: exactly one stage and the head move, the stage at its own rate."""

import numpy as np
import pytest
from fitting_small import fit_small
from listener import Listener
from small_models import make_classifier, weights_by_stage

from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.specs import CacheSpec, PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.storage.run_folder import RunFolder

ONE = PhaseSpec(
    name="one",
    epochs=2,
    unfreeze="stage1",
    learning_rate=1e-2,
    layer_decay=0.5,
    method="surgical",
)
SPEC = RunSpec(
    phases=(PhaseSpec(epochs=1), ONE),
    training=TrainingSpec(refit=False, rollback=False),
    cache=CacheSpec(precision="float32"),
)


def train(tmp_path, changes=None, **arguments):
    return fit_small(override(SPEC, changes or {}), tmp_path, Listener(), **arguments)


def moved_stages(found, before):
    return {
        stage
        for stage, values in found.items()
        if any(not np.array_equal(a, b) for a, b in zip(values, before[stage], strict=True))
    }


@pytest.mark.parametrize(("unfreeze", "stage"), [("stage1", "stage1"), ("last", "stage2")])
def test_exactly_the_named_stage_and_the_head_move(unfreeze, stage, tmp_path):
    before = weights_by_stage(make_classifier("small", seed=SPEC.seed))
    classifier, (_, outcome) = train(tmp_path, {"phases.1.unfreeze": unfreeze})
    found = weights_by_stage(classifier)
    assert moved_stages(found, before) == {stage, "head"}
    trained = [
        value.size
        for path, value in zip(
            (v.path for v in classifier.variables_of(stage)), found[stage], strict=True
        )
        if "_bn/" not in path
    ]
    assert outcome.num_trainable == sum(trained) + classifier.last_dense.count_params()


def test_the_stage_trains_at_layer_decay_times_the_rate_of_the_head(tmp_path):
    """At a decay of 1 % of a plain step, with momentum-free updates of Adam, it moves less."""
    start = weights_by_stage(make_classifier("small", seed=SPEC.seed))
    moves = []
    for decay in (1.0, 0.01):
        changes = {"phases.1.layer_decay": decay, "phases.1.epochs": 1}
        found = weights_by_stage(train(tmp_path, changes)[0])
        moves.append(np.abs(found["stage1"][0] - start["stage1"][0]).max())
    assert moves[1] < moves[0] / 20


def test_a_resumed_run_has_the_same_bits(tmp_path):
    expected = weights_by_stage(train(tmp_path)[0])
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    train(tmp_path, run=run, num_epochs=2)
    assert not moved_stages(weights_by_stage(train(tmp_path, run=run)[0]), expected)


def test_a_phase_without_a_stage_is_refused(tmp_path):
    with pytest.raises(SpecError, match="no stage to train"):
        train(tmp_path, {"phases.1.unfreeze": "head"})
