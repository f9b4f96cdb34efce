"""Auto: the best model that a time budget allows, on real digits and tiny trunks."""

import dataclasses
import itertools
import json

import pytest
from small_backbone import SMALL

import keras_transfer as kt
from keras_transfer.backbones.record import Stage
from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.experiments.auto import search
from keras_transfer.experiments.auto.budget import Budget
from keras_transfer.experiments.auto.candidates import find_backbones
from keras_transfer.experiments.auto.report import write_auto
from keras_transfer.experiments.auto.search import AutoResult, run_auto
from keras_transfer.experiments.trial_runner import TrialRunner
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import AutoSpec, CacheSpec, DataSpec, ModelSpec, RunSpec, ViewSpec
from keras_transfer.storage.run_folder import RunFolder
from pipelines.arguments import USER_ERROR
from pipelines.auto import main, read_words

QUIET = SilentReporter()
SHALLOW = dataclasses.replace(
    SMALL, name="shallow", stages=(Stage("stage1", "small1_pool"), *SMALL.stages[1:])
)
TRUNKS = ("small", "shallow")


@pytest.fixture(scope="module", autouse=True)
def _second_trunk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, SHALLOW.name, SHALLOW)
        yield


@pytest.fixture(scope="module")
def spec(digits_folder, tmp_path_factory) -> RunSpec:
    return RunSpec(
        name="digits",
        data=DataSpec(path=str(digits_folder), image_size=16, resize="squash"),
        views=ViewSpec(count=2, horizontal_flip=False),
        model=ModelSpec(backbone="small", weights="none"),
        cache=CacheSpec(folder=str(tmp_path_factory.mktemp("cache")), precision="float32"),
    )


class Clock:
    """A fake clock: `now`, in seconds, changes only when a test sets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def find(spec, folder, *, clock=None, trunks=TRUNKS, **limits) -> AutoResult:
    auto = AutoSpec(time_budget="10m", backbones=trunks, folds=2, **limits)
    budget = Budget.start(auto.time_budget, clock=clock or Clock())
    return run_auto(spec, auto, RunFolder.create(folder), budget=budget, reporter=QUIET)


@pytest.fixture(scope="module")
def found(spec, tmp_path_factory) -> AutoResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "RATES", (1e-3,))  # Every configuration takes seconds to compile.
        # One trunk fits into the limit, two do not.
        found = find(spec, tmp_path_factory.mktemp("auto") / "run", max_size_mb=0.01)
    write_auto(found)
    return found


@pytest.mark.slow
def test_everything_is_tried_where_there_is_time(found):
    steps = [attempt.step for attempt in found.attempts]
    assert steps == ["backbone", "backbone", "backbone", "views", *["fine-tuning"] * 3]
    first, second, both, views, *_ = found.attempts
    assert both.name in ("small+shallow", "shallow+small")
    assert "MB are above max_size_mb" in both.reason
    assert all(attempt.score is not None for attempt in found.attempts if attempt is not both)
    assert first.difference is None
    for attempt in (second, views):
        low, high = attempt.interval
        assert low <= attempt.difference <= high
        assert attempt.is_chosen or attempt.difference <= 0
    assert not found.was_interrupted


@pytest.mark.slow
def test_fine_tuning_is_chosen_by_validation_loss(found):
    tuned = found.attempts[4:]
    chosen = [attempt.loss for attempt in tuned if attempt.is_chosen]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[-1] == min(attempt.loss for attempt in tuned)
    num_phases = 1 if tuned[0].loss == chosen[-1] else 2
    assert len(found.result.outcomes) == num_phases


@pytest.mark.slow
def test_the_two_best_trunks_are_tried_side_by_side(spec, found, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "RATES", ())
    monkeypatch.setattr(search, "run_transfer", lambda *_, **__: found.result)
    combined = find(spec, tmp_path / "run")
    both, _, last = combined.attempts[2:5]
    assert both.name in ("small+shallow, 1 view", "shallow+small, 1 view")
    assert both.score is not None
    assert both.interval[0] <= both.difference <= both.interval[1]
    if both.is_chosen:
        assert combined.spec.model.backbone == both.name.partition(",")[0]
        assert last.reason == "not tried: backbones that are combined stay frozen"


@pytest.mark.slow
def test_a_fine_tuning_that_promises_much_is_trained_at_once(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "LEAST_IMAGES", 1)
    monkeypatch.setattr(search, "PROMISING_LOSS", 100)
    result = find(spec, tmp_path / "run")
    trunk, alone, begun, whole, *others = result.attempts
    assert [one.step for one in result.attempts[:4]] == ["backbone", *["fine-tuning"] * 3]
    assert begun.reason == "promises much"
    assert begun.name == "fine-tune stage2, learning rate 1e-3, one epoch"
    assert whole.name == "fine-tune stage2, learning rate 1e-3, 10 epochs"
    assert whole.is_chosen == (whole.loss < alone.loss)
    if whole.is_chosen:  # No other trunk is tried, and the run is that of the trial.
        assert not others
        assert result.spec.phases[1].unfreeze == "stage2"
        assert result.result.outcomes[1].val_loss == pytest.approx(whole.loss)
    assert trunk.is_chosen


@pytest.mark.slow
def test_a_fine_tuning_that_promises_little_is_left(spec, found, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "LEAST_IMAGES", 1)
    monkeypatch.setattr(search, "RATES", (1e-3,))
    monkeypatch.setattr(search, "PROMISING_LOSS", 0)
    monkeypatch.setattr(search, "run_transfer", lambda *_, **__: found.result)
    monkeypatch.setattr(search.Search, "_fine_tune", lambda self: None)
    names = [(one.step, one.reason) for one in find(spec, tmp_path / "run").attempts]
    assert names[2] == ("fine-tuning", "promises little")
    assert [step for step, _ in names].count("backbone") > 1


@pytest.mark.slow
def test_a_shorter_fine_tuning_is_trained_where_the_whole_does_not_fit(
    spec, found, tmp_path, monkeypatch
):
    monkeypatch.setattr(search, "LEAST_IMAGES", 1)
    monkeypatch.setattr(search, "PROMISING_LOSS", 100)
    monkeypatch.setattr(search, "run_transfer", lambda *_, **__: found.result)
    fits = search.Search._fits

    def short(self, best, predicted, trial_seconds=None):
        is_short = not best.is_tuned or (best.spec.phases[-1].epochs < 6 and not best.refit_seconds)
        return is_short and fits(self, best, predicted, trial_seconds)

    monkeypatch.setattr(search.Search, "_fits", short)
    result = find(spec, tmp_path / "run")
    assert result.attempts[3].name.endswith("4 epochs, no refit")
    if result.attempts[3].is_chosen:
        assert not result.spec.training.refit


@pytest.mark.slow
def test_the_result_is_an_ordinary_run_with_a_report(found, digits_folder):
    path = found.result.run.path
    run = kt.load_run(path)
    assert run.spec == found.spec
    assert len(run.predict(digits_folder / "digit_3")) > 1
    assert not (path / "checkpoint").exists()
    text = (path / "auto.md").read_text()
    content = json.loads((path / "auto.json").read_text())
    for attempt, figures in zip(found.attempts, content["attempts"], strict=True):
        assert attempt.name in text
        assert figures["reason"] == attempt.reason
    assert content["seconds"]["budget"] == 600
    assert found.name in text


@pytest.mark.slow
def test_a_tuned_run_has_the_weights_that_were_compared(found):
    """The final run resumes the trial: its phases before the refit are those of the trial."""
    chosen = [one for one in found.attempts if one.is_chosen][-1]
    last = [one for one in found.result.outcomes if one.kept][-1]
    if chosen.step == "fine-tuning":
        assert last.val_loss == pytest.approx(chosen.loss)


@pytest.mark.slow
def test_a_short_budget_tries_the_first_trunk_only(spec, found, tmp_path, monkeypatch):
    clock, train = Clock(), TrialRunner.train

    def slowly(*args, **options):
        clock.now += 500
        return train(*args, **options)

    monkeypatch.setattr(TrialRunner, "train", slowly)
    monkeypatch.setattr(search, "run_transfer", lambda *_, **__: found.result)
    short = find(spec, tmp_path / "run", clock=clock)
    first, *others = short.attempts
    assert first.is_chosen
    assert first.seconds == 500
    assert others
    for attempt in others:
        assert attempt.score is None
        assert f"{attempt.predicted_seconds:.0f} s" in attempt.reason
    assert short.spec.model.backbone == first.name.partition(",")[0]


@pytest.mark.slow
def test_an_interrupted_search_delivers_the_best_so_far(spec, tmp_path, monkeypatch):
    train, calls = TrialRunner.train, itertools.count()

    def interrupted(*args, **options):
        if next(calls):
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr(TrialRunner, "train", interrupted)
    found = find(spec, tmp_path / "run")
    write_auto(found)
    assert found.was_interrupted
    assert [attempt.is_chosen for attempt in found.attempts] == [True]
    assert "Ctrl-C" in (tmp_path / "run" / "auto.md").read_text()
    assert found.result.run.metrics_file.is_file()


def test_an_interrupt_before_any_model_ends_the_search(spec, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrialRunner, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find(spec, tmp_path / "run")


@pytest.mark.parametrize("limits", [{"max_size_mb": 0.001}, {"max_latency_ms": 0.001}])
def test_limits_that_exclude_everything_name_all_trunks(spec, tmp_path, limits):
    auto = AutoSpec(backbones=TRUNKS, **limits)
    with pytest.raises(SpecError, match="no backbone can be used") as error:
        run_auto(spec, auto, RunFolder.create(tmp_path / "run"), reporter=QUIET)
    for name in (*TRUNKS, *limits):
        assert name in error.value.received
    assert not (tmp_path / "run").exists()


def test_a_study_is_refused_with_the_field_of_auto_s_own_folds(spec, tmp_path):
    study = override(spec, {"seeds": 3})
    with pytest.raises(SpecError, match=r"auto\.folds"):
        run_auto(study, AutoSpec(), RunFolder.create(tmp_path / "run"), reporter=QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("budget", ["59s", "", "soon"])
def test_a_budget_must_be_long_enough(budget):
    with pytest.raises(SpecError, match="time_budget"):
        Budget.start(budget)


def test_all_unknown_trunks_are_named():
    with pytest.raises(SpecError) as error:
        find_backbones(RunSpec(), AutoSpec(backbones=("resnet5", "small", "vgg61")))
    assert error.value.received == "resnet5, vgg61"


def test_trunks_with_weights_on_this_machine_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    names = find_backbones(RunSpec(), AutoSpec())
    assert "efficientnet_lite0" in names
    assert "resnet50" not in names
    only = override(RunSpec(), {"model.weights": "none", "model.backbone": "small"})
    assert find_backbones(only, AutoSpec()) == ["small"]


def test_no_trunk_on_this_machine_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    only = {"vgg16": BACKBONES["vgg16"]}
    monkeypatch.setattr("keras_transfer.experiments.auto.candidates.BACKBONES", only)
    with pytest.raises(SpecError, match="no backbone has its weights"):
        find_backbones(RunSpec(), AutoSpec())


def test_words_of_the_command_line(digits_folder, capsys):
    words = ["time_budget=2m", "folds=3", "model.dropout=0.5"]
    spec, auto = read_words(str(digits_folder), words)
    assert auto == AutoSpec(time_budget="2m", folds=3)
    assert (spec.folds, spec.model.dropout, spec.data.path) == (1, 0.5, str(digits_folder))
    assert main([str(digits_folder), "time_budget=5s"]) == USER_ERROR
    assert "60s or more" in capsys.readouterr().err
