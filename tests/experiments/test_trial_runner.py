"""One trial runner, many trainings: each equals a training of its own, and no state is left."""

import gc
import itertools

import keras
import pytest
from searches import DROPOUT, RATE, make_spec

from keras_transfer.config import override
from keras_transfer.devices.memory import resident_mb
from keras_transfer.experiments.session import open_session
from keras_transfer.experiments.trial_runner import TrialRunner
from keras_transfer.experiments.tune.workers import open_trial_runner
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run
from keras_transfer.training.fitting import fit_phases


@pytest.fixture(scope="module")
def small_spec(digits_folder, tmp_path_factory):
    return make_spec(digits_folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def runner(small_spec, tmp_path):
    run = start_run(small_spec, output=tmp_path / "search", suffix="-search")
    with open_trial_runner(small_spec, run, reporter=SilentReporter()) as (opened, _):
        yield opened


def test_a_training_after_others_is_the_training_of_a_run(runner):
    head = {"name": "frozen", "epochs": 1}
    tail = {**head, "name": "fine-tune", "unfreeze": "last", "learning_rate": 1e-2}
    # This one moves the trunk, which the next must find as it was.
    runner.train(runner.vary({"phases": [head, tail]}))
    spec = runner.vary({RATE: 3e-2, "model.head": "mlp"})
    training = runner.train(spec, predict=True)
    with open_session(spec, reporter=SilentReporter()) as session:
        classifier, phase_inputs = session.build_classifier(), session.phase_inputs()
        outcomes = fit_phases(classifier, phase_inputs, reporter=SilentReporter())
    assert training.val_loss == outcomes[-1].val_loss
    assert training.val_score == outcomes[-1].val_score
    assert training.scores is not None
    assert training.scores.mean() == pytest.approx(training.val_score)
    assert outcomes[-1].test_score is not None


def test_equal_specs_share_a_training_and_others_do_not(runner):
    spec = runner.vary({RATE: 3e-2})
    first = runner.train(spec)
    again = runner.train(override(spec, {RATE: 0.03}))
    assert again.figures == first.figures
    assert again.seconds < first.seconds
    assert runner.state(spec).path == runner.state(runner.vary({RATE: 0.03})).path
    assert runner.state(spec).path != runner.state(runner.vary({DROPOUT: 0.3})).path
    assert isinstance(runner.state(spec), RunFolder)


def test_features_are_computed_once_for_all_trainings(runner):
    first = runner.train(runner.vary({DROPOUT: 0.1, "views.policy": "strong"}))
    second = runner.train(runner.vary({DROPOUT: 0.2, "views.policy": "strong", RATE: 1e-2}))
    assert first.views["views_computed"] > 0
    assert second.views["views_computed"] == 0


@pytest.mark.slow
def test_memory_stays_flat(runner: TrialRunner):
    def train(num_trainings: int) -> float:
        for _ in range(num_trainings):
            runner.train(runner.vary({RATE: 1e-3 * (1 + next(numbers)), "phases.0.epochs": 1}))
        gc.collect()
        return resident_mb()

    numbers = itertools.count()
    sizes = [train(2)]
    models = _num_models()
    sizes += [train(3) for _ in range(3)]
    assert _num_models() <= models
    # What is kept grows in every block; the allocator takes memory from the system in some only.
    assert min(after - before for before, after in itertools.pairwise(sizes)) < 6


def _num_models() -> int:
    return sum(isinstance(item, keras.Model) for item in gc.get_objects())
