"""A search is honest: values arrive, only validation chooses, failures are what they are."""

import dataclasses
import math
import tomllib

import numpy as np
import pytest
import tensorflow as tf
from listener import Listener
from searches import DROPOUT, RATE, SPACE, read_json, search
from small_backbone import save_small

from keras_transfer.config import load_spec, override
from keras_transfer.errors import RunError, SpecError, WeightsError
from keras_transfer.experiments import trial_runner as runner_module
from keras_transfer.experiments.run import run_transfer
from keras_transfer.experiments.session import open_session
from keras_transfer.experiments.study.run import run_study
from keras_transfer.experiments.tune import best
from keras_transfer.experiments.tune.best import write_best_spec
from keras_transfer.experiments.tune.effects import fields_with_effect
from keras_transfer.experiments.tune.report import describe_winner, recommend, write_search
from keras_transfer.experiments.tune.results import SearchResults
from keras_transfer.experiments.tune.workers import open_trial_runner
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.storage.run_start import start_run
from keras_transfer.training.fitting import fit_phases


@pytest.fixture(scope="module")
def found(small_spec, tmp_path_factory):
    result = search(override(small_spec, {"search.refits": 2}), tmp_path_factory.mktemp("s") / "a")
    write_search(result)
    return result


@pytest.fixture
def _winner_of_another(found, monkeypatch):
    """A search ends when its winner is chosen: what is written of it is tested on `found`."""
    monkeypatch.setattr(best, "run_transfer", lambda *_, **__: found.winner.result)


def test_values_arrive_in_the_spec_of_every_trial(found):
    specs = [read_json(path) for path in sorted(found.run.path.glob("trials/*/spec.json"))]
    arrived = {(s["phases"][0]["learning_rate"], s["model"]["dropout"]) for s in specs}
    assert arrived == {(r, d) for r in SPACE[RATE]["values"] for d in SPACE[DROPOUT]["values"]}
    assert len(found.trials) == len(specs) == 4
    for trial, spec in zip(found.trials, specs, strict=True):
        assert trial.values == {
            RATE: spec["phases"][0]["learning_rate"],
            DROPOUT: spec["model"]["dropout"],
        }
    # A rate of a thirtieth trains another head.
    assert len({trial.val_loss for trial in found.trials}) >= 2


def test_trials_are_rows_with_the_best_first(found):
    search = SearchResults(read_json(found.run.search_file))
    assert [trial["rank"] for trial in search["trials"]] == [1, 2, 3, 4]
    assert search["trials"][0]["name"] == search["winner"]["name"] == search.best["trial"]
    rows = search.trials
    assert list(rows[0]) == [
        *("rank", "trial", "val_accuracy", "val_loss", RATE, DROPOUT),
        *("epochs", "seconds", "status"),
    ]
    order = [(-row["val_accuracy"], row["val_loss"]) for row in rows]
    assert order == sorted(order)
    assert search.best == rows[0]
    assert search.recommended in ("winner", "default")
    assert search["recommendation"]["command"] in repr(search)
    assert repr(search).count("\n| ") >= 4


def test_search_json_says_what_was_found(found):
    content = read_json(found.run.search_file)
    scores = [trial["score"] for trial in content["trials"]]
    assert content["winner"]["score"] == max(scores)
    best = [t for t in content["trials"] if t["score"] == max(scores)]
    winner = min(best, key=lambda t: t["val_loss"])
    assert content["winner"]["name"] == winner["name"]
    assert content["num_failed"] == 0
    assert content["seconds"]["search"] < content["seconds"]["total"]
    refits = content["refits"]
    assert refits["seeds"] == [1, 2]
    means = [np.mean(refits[side]) for side in ("winner", "default")]
    assert refits["difference"] == pytest.approx(means[0] - means[1])
    low, high = refits["interval"]
    assert low <= refits["difference"] <= high
    assert refits["exceeds_noise"] == (low > 0)
    assert content["is_better_than_default"] == refits["exceeds_noise"]
    assert refits["solved"] == []
    num_val = len(read_json(found.run.path / "splits.json")["rows"]["val"])
    assert refits["num_images"] == content["num_compared"] == num_val
    told = " ".join(describe_winner(found))
    assert "95% interval" in told
    assert "trained with 2 other seeds" in told


def test_the_folder_holds_what_it_should_and_nothing_half_done(found):
    names = {path.name for path in found.run.path.iterdir()}
    assert names == {
        "best.toml",
        "class_names.json",
        "environment.json",
        "oracle",
        "search.html",
        "search.json",
        "spec.json",
        "splits.json",
        "tensorboard",
        "trials",
        "winner",
    }
    assert found.run.is_complete
    page = (found.run.path / "search.html").read_text()
    assert all(trial.name in page for trial in found.trials)


def test_the_winner_is_a_run_with_the_weights_of_its_trial(found):
    winner = found.winner.result.run
    assert winner.is_complete
    metrics = read_json(winner.metrics_file)
    assert metrics["phases"][-1]["val_score"] == found.winner.trial.val_score
    assert metrics["phases"][-1]["val_loss"] == found.winner.trial.val_loss
    assert metrics["phases"][-1]["test_score"] is None
    rows = read_json(winner.path / "splits.json")["rows"]
    assert metrics["test"]["num_examples"] == len(rows["test"])
    assert metrics["export"]["label_agreement"] == 1.0
    assert found.winner.keeps_weights


@pytest.mark.slow
def test_best_toml_trains_the_winner_again(found, tmp_path):
    spec = load_spec(found.run.path / "best.toml")
    assert spec == found.winner.spec
    assert not spec.search.space
    again = run_transfer(
        spec, start_run(spec, output=tmp_path / "again"), reporter=SilentReporter()
    )
    assert again.outcomes[-1].val_loss == found.winner.trial.val_loss
    assert again.test.accuracy == found.winner.result.test.accuracy
    for one, other in zip(
        again.classifier.model.get_weights(),
        found.winner.result.classifier.model.get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_best_toml_keeps_what_toml_has_no_word_for(small_spec, tmp_path):
    spec = override(small_spec, {"views.count": None, "cache.mode": "off", "search.space": {}})
    spec = override(spec, {"search.tuner": "bayesian", "search.refits": 3})
    run = start_run(spec, output=tmp_path / "run")
    write_best_spec(run, spec, trial="0007")
    assert tomllib.loads((run.path / "best.toml").read_text())["views"]["count"] == "none"
    assert load_spec(run.path / "best.toml") == spec


def test_no_trial_can_see_the_test_split(small_spec, tmp_path):
    for folds in (1, 2):
        spec = override(small_spec, {"folds": folds})
        run = start_run(spec, output=tmp_path / f"{folds}", suffix="-search")
        with open_trial_runner(spec, run, reporter=SilentReporter()) as (runner, _):
            seen = [rows for s in runner.splits for rows in (s.train, s.val, s.test)]
            assert len(runner.session.data.splits.test) > 0
            assert not np.intersect1d(np.concatenate(seen), runner.session.data.splits.test).size
            if folds > 1:
                held_out = np.concatenate([s.test for s in runner.splits])
                assert len(held_out) == 300 - len(runner.session.data.splits.test)


EXACT = {"phases.0.method": "exact", "model.weights": "file"}


@pytest.fixture
def exact_spec(small_spec, tmp_path):
    """A solved head on a network with weights, so that no seed changes its result."""
    file = save_small(tmp_path / "small.keras")
    return override(
        small_spec,
        {**EXACT, "model.backbone": str(file), "model.last_stage": "", "search.refits": 2},
    )


@pytest.mark.usefixtures("_winner_of_another")
def test_solved_heads_are_searched_without_rates_and_compared_without_seeds(exact_spec, tmp_path):
    strength = "phases.0.method_options.strength"
    space = {strength: {"values": [0.003, 3.0]}, RATE: {"values": [1e-3, 1e-2]}}
    listener = Listener()
    spec = override(exact_spec, {"search.space": space, "search.tuner": "bayesian"})
    found = search(spec, tmp_path / "s", listener)
    assert [trial.values for trial in found.trials] == [{strength: 0.003}, {strength: 3.0}]
    told = " ".join(listener.said)
    assert "change nothing: phases.0.learning_rate (phase 'frozen' is solved exactly" in told
    assert "All 2 combinations are tried, so there is nothing for search.tuner=bayesian" in told
    num_val = len(read_json(found.run.path / "splits.json")["rows"]["val"])
    assert f"on {num_val} images of the validation split: one image is" in told
    comparison = found.winner.comparison
    assert comparison.seeds == ()
    assert comparison.solved == ("winner", "default")
    assert comparison.winner == (found.winner.trial.val_score,)
    assert "neither depends on the seed" in " ".join(describe_winner(found))


@pytest.mark.usefixtures("_winner_of_another")
def test_values_that_train_the_same_are_trained_once(exact_spec, tmp_path, monkeypatch):
    real, calls = runner_module.fit_phases, []
    monkeypatch.setattr(
        runner_module, "fit_phases", lambda *args, **given: calls.append(1) or real(*args, **given)
    )
    listener = Listener()
    found = search(override(exact_spec, {"search.refits": 0}), tmp_path / "s", listener)
    assert len(found.trials) == 4
    # A rate has an effect only where dropout makes the head train.
    (copy,) = [trial for trial in found.trials if trial.same_as]
    assert copy.values[DROPOUT] == 0.0
    assert any(f"trains the same as trial {copy.same_as}" in line for line in listener.said)
    assert len(calls) == 3 + 2
    assert found.winner.is_better_than_default is (False if found.winner.is_default else None)


def test_a_space_without_any_effect_is_refused_before_training(exact_spec, tmp_path):
    space = {RATE: {"values": [1e-3, 1e-2]}, "training.batch_size": {"values": [8, 16]}}
    with pytest.raises(
        SpecError, match=r"no field of search.space(.|\n)*learning_rate(.|\n)*batch"
    ):
        search(override(exact_spec, {"search.space": space}), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_fields_without_effect_have_none(exact_spec, tmp_path):
    run = start_run(exact_spec, output=tmp_path / "s", suffix="-search")
    other = {RATE: 0.5, "phases.0.epochs": 7, "training.batch_size": 3, "seed": 5}
    other |= {"training.label_smoothing": 0.3, "model.hidden_units": 2}
    with open_trial_runner(exact_spec, run, reporter=SilentReporter()) as (runner, plan):
        specs = [runner.spec, override(runner.spec, other)]
        one, changed = (fields_with_effect(spec, plan.trained) for spec in specs)
        assert one == changed
        assert runner.train(specs[0]).val_loss == runner.train(specs[1]).val_loss


@pytest.mark.slow
@pytest.mark.usefixtures("_winner_of_another")
def test_folds_are_evaluated_on_the_images_that_each_held_out(small_spec, tmp_path):
    spec = override(
        small_spec,
        {"folds": 2, "search.space": {RATE: {"values": [1e-2, 3e-2]}}},
    )
    found = search(spec, tmp_path / "folds")
    trained = override(spec, found.winner.trial.values)
    run = start_run(trained, output=tmp_path / "study")
    study = run_study(trained, run, reporter=SilentReporter())
    right = sum(trial.score * trial.num_held_out for trial in study.trials)
    assert found.winner.trial.val_score == pytest.approx(
        right / sum(trial.num_held_out for trial in study.trials)
    )
    assert not found.winner.keeps_weights
    assert found.winner.comparison is None


def test_a_programming_error_stops_the_search_with_itself(small_spec, tmp_path, monkeypatch):
    calls = []

    def broken(*args, **kwargs):
        calls.append(1)
        raise TypeError("this is nobody's fault but ours")

    monkeypatch.setattr(runner_module, "fit_phases", broken)
    with pytest.raises(TypeError, match="nobody's fault but ours"):
        search(small_spec, tmp_path / "s")
    assert len(calls) == 1


def test_values_that_contradict_each_other_end_the_search(small_spec, tmp_path):
    space = {
        "phases.0.warmup_epochs": {"values": [1.0, 3.0]},
        "phases.0.epochs": {"values": [4, 2]},
    }
    with pytest.raises(SpecError, match="never ends its warm-up"):
        search(override(small_spec, {"phases.0.epochs": 4, "search.space": space}), tmp_path / "s")


@pytest.mark.slow
@pytest.mark.usefixtures("_winner_of_another")
def test_trials_that_diverge_or_run_out_of_memory_fail_and_the_search_goes_on(
    small_spec, tmp_path, monkeypatch
):
    real = runner_module.fit_phases

    def scarce(classifier, phase_inputs, **kwargs):
        if (
            phase_inputs.spec.model.dropout == 0.3
            and phase_inputs.spec.phases[0].learning_rate == 1e-2
        ):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return real(classifier, phase_inputs, **kwargs)

    monkeypatch.setattr(runner_module, "fit_phases", scarce)
    spec = override(small_spec, {"search.space": {**SPACE, RATE: {"values": [1e-2, 1e38]}}})
    listener = Listener()
    found = search(spec, tmp_path / "s", listener)
    by_values = {(t.values[RATE], t.values[DROPOUT]): t for t in found.trials}
    assert len(found.trials) == 4
    assert by_values[1e-2, 0.0].is_scored
    assert "OOM" in by_values[1e-2, 0.3].cause
    assert "diverged" in by_values[1e38, 0.0].cause
    assert found.winner.trial is by_values[1e-2, 0.0]
    assert sum("failed" in sentence for sentence in listener.said) == 3
    write_search(found)
    assert read_json(found.run.search_file)["num_failed"] == 3


def test_all_failed_is_an_error_that_names_the_first_cause(small_spec, tmp_path):
    spec = override(small_spec, {"search.space": {RATE: {"values": [1e38, 2e38]}}})
    with pytest.raises(RunError, match=r"all 2 trials of the search failed(.|\n)*diverged"):
        search(spec, tmp_path / "s")


def test_wrong_values_are_told_before_any_image_is_read(small_spec, tmp_path):
    stages = {"phases.0.unfreeze": {"values": ["head", "stage4"]}}
    with pytest.raises(SpecError, match="stage4"):
        search(override(small_spec, {"search.space": stages}), tmp_path / "s")
    assert not (tmp_path / "s").exists()
    weights = {"model.weights": {"values": ["none", "nowhere.h5"]}}
    with pytest.raises(WeightsError, match=r"nowhere\.h5"):
        search(override(small_spec, {"search.space": weights}), tmp_path / "s")
    with pytest.raises(SpecError, match="seeds=2"):
        search(override(small_spec, {"seeds": 2}), tmp_path / "s")
    with pytest.raises(SpecError, match="20m"):
        search(override(small_spec, {"search.time_budget": "20 minutes"}), tmp_path / "s")


def test_a_time_budget_ends_the_search_with_the_best_so_far(small_spec, tmp_path):
    spec = override(small_spec, {DROPOUT: 0.0, "search.time_budget": "0.001s"})
    found = search(spec, tmp_path / "s")
    assert 1 <= len(found.trials) < 4
    # The grid's first trial is the original spec.
    assert found.winner.is_default
    assert found.winner.is_better_than_default is False
    assert "trains the same as the original spec" in " ".join(describe_winner(found))
    assert recommend(found).take == "default"
    assert found.winner.result.run.is_complete


@pytest.mark.slow
@pytest.mark.usefixtures("_winner_of_another")
def test_an_interrupted_search_goes_on_to_identical_scores(
    found, small_spec, tmp_path, monkeypatch
):
    real, calls = runner_module.fit_phases, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(runner_module, "fit_phases", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(small_spec, tmp_path / "s")
    done = search(small_spec, tmp_path / "s", resume=True)
    assert [t.val_loss for t in done.trials] == [t.val_loss for t in found.trials]
    assert [t.values for t in done.trials] == [t.values for t in found.trials]
    # Two ended before and the third was begun; two are left, then the winner and the spec itself.
    assert len(calls) == 3 + 2 + 2
    assert done.num_before == 2
    assert "without 2 trials that had ended before" in describe_winner(done)[-1]
    write_search(done)
    with pytest.raises(RunError, match="finished"):
        search(small_spec, tmp_path / "s", resume=True)


@pytest.mark.slow
@pytest.mark.usefixtures("_winner_of_another")
def test_hyperband_continues_trainings_and_ends_where_a_whole_one_does(small_spec, tmp_path):
    spec = make_two_phases(small_spec)
    found = search(spec, tmp_path / "s")
    total = 3
    assert {t.epochs for t in found.trials} == {1, 3}
    assert {t.share for t in found.trials} == {1 / 3, 1.0}
    whole = [t for t in found.trials if t.epochs == total]
    assert found.winner.trial in whole
    straight = override(spec, {**found.winner.trial.values, "search.space": {}, "name": "x"})
    with open_session(straight, reporter=SilentReporter()) as session:
        outcomes = fit_phases(
            session.build_classifier(), session.phase_inputs(), reporter=SilentReporter()
        )
    last = [outcome for outcome in outcomes if outcome.kept][-1]
    assert last.val_loss == found.winner.trial.val_loss
    # A later round of the same values trains what the earlier one had not.
    oracle = sorted(found.run.path.glob("oracle/trial_*/trial.json"))
    continued = [
        read_json(path)["hyperparameters"]["values"]
        for path in oracle
        if "tuner/trial_id" in read_json(path)["hyperparameters"]["values"]
    ]
    assert continued


def make_two_phases(spec):
    head = dataclasses.asdict(spec.phases[0])
    tail = {**head, "name": "fine-tune", "unfreeze": "last", "learning_rate": 1e-3, "epochs": 1}
    return override(
        spec,
        {
            "phases": [head, tail],
            "search.tuner": "hyperband",
            "search.space": {RATE: {"low": 1e-3, "high": 1e-1, "sampling": "log"}},
        },
    )


# With the same score everywhere there is no length to fit.
@pytest.mark.slow
@pytest.mark.usefixtures("_winner_of_another")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("tuner", "objective"), [("random", "val_loss"), ("bayesian", "val_score")]
)
def test_other_tuners_propose_as_many_trials_as_asked_for(tuner, objective, small_spec, tmp_path):
    space = {RATE: {"low": 1e-3, "high": 1e-1, "sampling": "log"}}
    search_for = {"search.tuner": tuner, "search.trials": 3, "search.objective": objective}
    spec = override(small_spec, {**search_for, "search.space": space})
    found = search(spec, tmp_path / "s")
    if objective == "val_loss":
        assert found.winner.trial.score == min(t.val_loss for t in found.trials)
    assert len(found.trials) == 3
    rates = [t.values[RATE] for t in found.trials]
    assert all(1e-3 <= rate <= 1e-1 for rate in rates)
    assert len(set(rates)) == 3
    assert all(math.isfinite(t.resident_mb) and t.resident_mb > 100 for t in found.trials)
