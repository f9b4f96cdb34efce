"""What a search recommends follows from what was measured."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_search import made_trial

from keras_transfer.config import override
from keras_transfer.experiments.tune.best import Comparison, Winner
from keras_transfer.experiments.tune.progress_table import describe_left, describe_trial
from keras_transfer.experiments.tune.record import describe_choice, ranked
from keras_transfer.experiments.tune.report import recommend
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.task import Monitor

MONITOR = Monitor("accuracy", "max", is_share=True)


def comparison(low, high) -> Comparison:
    middle = (low + high) / 2
    return Comparison((1, 2, 3), (0.9,) * 3, (0.8,) * 3, middle, (low, high), 60, ())


def found(compared=None, *, scores=(0.9, 0.8), is_default=False, objective="val_score"):
    """A search whose best trial and original spec have these scores, and losses of 1 minus them."""
    results = [
        SimpleNamespace(figures={"val_score": score, "val_loss": 1 - score}) for score in scores
    ]
    winner = Winner(made_trial(0, {}, scores[0]), None, *results, compared, None, True, is_default)
    spec = override(RunSpec(), {"search.objective": objective})
    folder = SimpleNamespace(
        path=Path("a search"), spec_file=Path("spec.json"), read_json=lambda _: {"seed": 0}
    )
    task, run = SimpleNamespace(monitor=MONITOR), folder
    return SimpleNamespace(winner=winner, spec=spec, task=task, run=run)


@pytest.mark.parametrize(
    ("search", "is_better", "take", "why"),
    [
        (found(comparison(0.01, 0.1)), True, "winner", "entirely above 0"),
        (found(comparison(-0.01, 0.1)), False, "default", "not entirely above 0"),
        (found(comparison(0.0, 0.0)), False, "default", "the same score for every image"),
        (found(is_default=True), False, "default", "trains the same"),
        (found(), None, "winner", "was not measured"),
        (found(scores=(0.885, 0.9)), None, "default", "is worse than it by 1.5 points in accuracy"),
        (found(scores=(0.9, 0.9)), None, "default", "was not measured"),
        (found(objective="val_loss"), None, "winner", "its loss is better"),
    ],
)
def test_there_is_one_recommendation_with_its_rule_and_command(search, is_better, take, why):
    assert search.winner.is_better_than_default is is_better
    advice = recommend(search)
    assert advice.take == take
    assert why in advice.sentence
    commands = {
        "winner": "python -m pipelines.predict 'a search/winner' PHOTO.jpg",
        "default": "python -m pipelines.train 'a search/spec.json'",
    }
    assert advice.command == commands[take]


def test_a_finished_run_of_the_original_spec_is_named(tmp_path):
    search, run = RunFolder(tmp_path / "a-search"), RunFolder(tmp_path / "a")
    for folder, seed in ((search, 0), (run, 0)):
        folder.path.mkdir()
        folder.spec_file.write_text(json.dumps({"name": folder.path.name, "seed": seed}))
    made = found(is_default=True)
    made.run = search
    assert "pipelines.train" in recommend(made).command
    run.metrics_file.write_text("{}")
    assert f"trained already, in {run.path}" in recommend(made).sentence
    assert f"pipelines.predict {run.path} " in recommend(made).command


@pytest.mark.parametrize(
    ("trials", "told"),
    [
        ([(0.9, 0.3), (0.8, 0.2)], "Trial 0000 is the best."),
        ([(0.9, 0.3), (0.9, 0.2)], "0001 is the best: trial 0000 has the same accuracy, and it"),
        ([(0.9, 0.3), (0.9, 0.2), (0.9, 0.4)], "trials 0000, 0002 have the same accuracy"),
        ([(0.9, 0.2), (0.9, 0.2)], "0000 is the best: trial 0001 has the same accuracy, and of"),
    ],
)
def test_ties_are_told_with_the_rule_that_decides_them(trials, told):
    made = [
        made_trial(number, {}, score, val_loss=loss, started=float(number))
        for number, (score, loss) in enumerate(trials)
    ]
    best = ranked(made, higher_is_better=True)
    assert told in describe_choice(best, "val_score", MONITOR)


def test_trials_that_trained_longest_are_ranked_first():
    short, whole = made_trial(0, {}, 0.9, share=0.3), made_trial(1, {}, 0.8)
    assert ranked([short, whole], higher_is_better=True) == [whole, short]


def test_the_time_of_the_trials_that_are_left_is_told_after_one():
    plan = SimpleNamespace(num_trials=6)
    first, *rest = (made_trial(n, {}, 0.9, seconds=s) for n, s in enumerate((60.0, 3.0, 5.0)))
    one = describe_left([first], plan, num_ended=1, num_workers=1)
    assert one == " By this trial, which also computed features, about 300 s for 5 more trials."
    copy = made_trial(9, {}, 0.9, seconds=0.0, same_as="0000")
    assert "about 240 s" in describe_left([first, copy], plan, num_ended=2, num_workers=1)
    two = describe_left([first, rest[0]], plan, num_ended=2, num_workers=1)
    assert two == " About 12 s for 4 more trials."
    several = describe_left([first, *rest], plan, num_ended=5, num_workers=2)
    assert several == " About 2 s for 1 more trial."
    assert describe_left([first, *rest], plan, num_ended=6, num_workers=1) == ""
    plan.num_trials = None
    assert describe_left([first, *rest], plan, num_ended=3, num_workers=1) == ""


def test_a_trial_that_was_not_trained_again_says_which_it_equals():
    trial = made_trial(3, {"model.dropout": 0.0}, 0.9, same_as="0001")
    assert describe_trial(trial, MONITOR) == (
        "Trial 0003 trains the same as trial 0001 (model.dropout=0)."
    )
