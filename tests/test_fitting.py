"""Phases trained for a number of epochs go on later as if they had never stopped."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from feature_sources import make_source, make_splits
from small_models import make_classifier, weights_by_stage

from keras_transfer.features.phase_inputs import PhaseInputs
from keras_transfer.methods.registry import make_methods
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, PhaseSpec, RunSpec, TrainingSpec, ViewSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.training.fitting import fit_phases

HEAD = PhaseSpec(name="frozen", epochs=3, learning_rate=1e-2)
TAIL = PhaseSpec(name="fine-tune", epochs=3, unfreeze="last", learning_rate=1e-3, layer_decay=0.7)
SPEC = RunSpec(
    views=ViewSpec(count=2),
    phases=(HEAD, TAIL),
    training=TrainingSpec(rollback=False, refit=False, label_smoothing=0.0),
    cache=CacheSpec(mode="on", precision="float32"),
)


def train(tmp_path, run=None, num_epochs=None, splits=None):
    keras.utils.clear_session()
    reporter = SilentReporter()
    phase_inputs = PhaseInputs(
        SPEC,
        make_source(views=SPEC.views),
        splits or make_splits(),
        methods=make_methods(SPEC),
        cache=Cache(tmp_path / "store"),
        reporter=reporter,
    )
    classifier = make_classifier(seed=SPEC.seed)
    outcomes = fit_phases(
        classifier, phase_inputs, reporter=reporter, run=run, num_epochs=num_epochs
    )
    return classifier, outcomes


def without_times(outcome):
    values = json.loads(json.dumps(dataclasses.asdict(outcome)))
    del values["seconds"]
    for row in values["history"]:
        del row["seconds"]
    return values


@pytest.fixture(scope="module")
def trained_at_once(tmp_path_factory):
    return train(tmp_path_factory.mktemp("once"))


@pytest.fixture(scope="module")
def trained_once_through(tmp_path_factory):
    """What an epoch gives."""
    _, (outcome,) = train(tmp_path_factory.mktemp("epoch"), num_epochs=1)
    return outcome


def test_a_training_in_steps_of_epochs_is_the_training_at_once(trained_at_once, tmp_path):
    whole, expected = trained_at_once
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    # Within a phase, at its end, within the next, and beyond all.
    for number, num_epochs in enumerate((2, 3, 5, 99)):
        stepwise, outcomes = train(tmp_path, run, num_epochs)
        assert sum(outcome.epochs for outcome in outcomes) == min(num_epochs, 6), number
    assert list(map(without_times, outcomes)) == list(map(without_times, expected))
    theirs = weights_by_stage(whole)
    for stage, values in weights_by_stage(stepwise).items():
        for one, other in zip(values, theirs[stage], strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_phase_cut_off_is_judged_as_it_stands_and_keeps_its_schedule(trained_at_once, tmp_path):
    _, (whole, _) = trained_at_once
    _, (part,) = train(tmp_path, num_epochs=2)
    assert part.epochs == 2
    assert [row["learning_rate"] for row in part.history] == [
        row["learning_rate"] for row in whole.history[:2]
    ]
    best = max(range(2), key=lambda epoch: part.history[epoch]["val_accuracy"])
    assert part.val_score == pytest.approx(part.history[best]["val_accuracy"])


def test_no_test_split_is_no_test_figure(trained_once_through, tmp_path):
    splits, judged = make_splits(), trained_once_through
    bare = dataclasses.replace(splits, test=splits.test[:0])
    _, outcomes = train(tmp_path, num_epochs=1, splits=bare)
    assert outcomes[0].test_score is None
    assert outcomes[0].test_interval is None
    assert outcomes[0].test_loss is None
    assert outcomes[0].val_loss == judged.val_loss > 0
    assert judged.test_loss != judged.val_loss


def test_losses_are_those_of_the_labels_without_smoothing(trained_once_through):
    outcome = trained_once_through
    assert outcome.val_loss == pytest.approx(outcome.history[0]["val_loss"], rel=1e-5)
