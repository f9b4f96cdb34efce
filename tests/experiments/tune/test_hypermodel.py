"""The pipeline inside tuners that are not ours."""

import dataclasses

import keras
import keras_tuner
import numpy as np
import pytest
from listener import Listener
from searches import DROPOUT, RATE

from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.experiments import trial_runner as runner_module
from keras_transfer.experiments.tune.hypermodel import TransferHyperModel


def tuner_of(hypermodel, tmp_path, **changes):
    given = {"objective": "val_accuracy", "max_trials": 3, "seed": 1, "directory": str(tmp_path)}
    return keras_tuner.RandomSearch(hypermodel, **{**given, **changes})


@pytest.fixture(scope="module")
def hypermodel(small_spec):
    return TransferHyperModel(small_spec, reporter=Listener())


@pytest.mark.slow
def test_a_stock_hyperband_searches_and_its_best_models_have_their_scores(
    small_spec, tmp_path, capsys
):
    space = {RATE: {"low": 1e-3, "high": 1e-1, "sampling": "log"}}
    head = {"name": "frozen", "epochs": 1}
    tail = {"name": "fine-tune", "epochs": 1, "unfreeze": "last", "learning_rate": 1e-3}
    spec = override(small_spec, {"phases": [head, tail], "search.space": space})
    hypermodel = TransferHyperModel(spec, reporter=Listener())
    tuner = keras_tuner.Hyperband(
        hypermodel,
        objective="val_accuracy",
        max_epochs=2,
        factor=2,
        seed=1,
        directory=str(tmp_path),
    )
    tuner.search()
    trials = list(tuner.oracle.trials.values())
    assert {trial.status for trial in trials} == {"COMPLETED"}
    data = hypermodel.data
    pixels = np.asarray(data.examples.pixels)[data.splits.val].astype(np.float32)
    labels = data.examples.targets.values[data.splits.val]
    best = tuner.oracle.get_best_trials(2)
    for model, trial in zip(tuner.get_best_models(2), best, strict=True):
        answers = model.predict(pixels, verbose=0).argmax(axis=1)
        assert np.mean(answers == labels) == pytest.approx(trial.score)
    assert "Trial" in capsys.readouterr().out


def test_callbacks_are_told_of_the_whole_model_once_it_is_trained(hypermodel, tmp_path):
    # Tuners copy callbacks, so what they are told outlives them in the class.
    _Note.told.clear()
    tuner = tuner_of(hypermodel, tmp_path, max_trials=1)
    tuner.search(callbacks=[_Note()], verbose=0)
    (logs, num_layers), *others = _Note.told
    assert not others
    assert logs["val_accuracy"] == tuner.oracle.get_best_trials(1)[0].score
    assert num_layers == len(tuner.get_best_models(1)[0].layers)


class _Note(keras.callbacks.Callback):
    told: list = []  # noqa: RUF012

    def on_epoch_end(self, epoch, logs=None):
        self.told.append((logs, len(self.model.layers)))


def test_what_a_fit_would_take_is_refused(hypermodel, tmp_path):
    with pytest.raises(TypeError, match="takes no data, batch_size"):
        tuner_of(hypermodel, tmp_path).search(np.zeros(3), batch_size=3, verbose=0)


@pytest.mark.slow
def test_errors_stop_the_search_and_divergence_does_not(
    small_spec, hypermodel, tmp_path, monkeypatch
):
    space = {RATE: {"values": [1e-2, 1e38]}, DROPOUT: {"values": [0.0]}}
    diverging = TransferHyperModel(
        override(small_spec, {"search.space": space}), reporter=Listener()
    )
    tuner = tuner_of(diverging, tmp_path / "a")
    tuner.search(verbose=0)
    statuses = {t.hyperparameters[RATE]: t.status for t in tuner.oracle.trials.values()}
    assert statuses == {1e-2: "COMPLETED", 1e38: "FAILED"}

    def broken(*args, **kwargs):
        raise TypeError("ours")

    monkeypatch.setattr(runner_module, "fit_phases", broken)
    with pytest.raises(keras_tuner.errors.FatalError, match="ours"):
        tuner_of(hypermodel, tmp_path / "b").search(verbose=0)


def test_splits_can_be_ones_own(small_spec, hypermodel):
    drawn = hypermodel.data.splits
    own = dataclasses.replace(drawn, val=drawn.val[:20])
    ours = TransferHyperModel(small_spec, own, reporter=Listener())
    np.testing.assert_array_equal(ours.data.splits.val, drawn.val[:20])


def test_a_spec_without_a_space_or_with_folds_is_refused(small_spec):
    with pytest.raises(SpecError, match="no search space"):
        TransferHyperModel(override(small_spec, {"search.space": {}}))
    with pytest.raises(SpecError, match="folds=3"):
        TransferHyperModel(override(small_spec, {"folds": 3}))


def test_it_is_public():
    from keras_transfer import tuning

    assert tuning.TransferHyperModel is TransferHyperModel
