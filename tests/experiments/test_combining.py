"""Soups and ensembles of finished runs: identities, inequalities, refusals and whole runs."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import keras_transfer as kt
from keras_transfer.errors import DataError, SpecError
from keras_transfer.experiments.combine.combination import combine_runs
from keras_transfer.experiments.combine.members import load_members
from keras_transfer.experiments.combine.networks import averaged, joined, mean_weights
from keras_transfer.inference.prediction import load_run
from keras_transfer.models.forward import predict_pixels
from keras_transfer.reporting.reporter import SilentReporter
from pipelines.combine import main

FIELDS = {
    "backbone": "small",
    "weights": "none",
    "image_size": 16,
    "views.count": 1,
    "training.refit": False,
}
HEAD = {"name": "frozen", "method": "exact"}
FIRM = {**HEAD, "method_options": {"strength": 1.0}}
TAIL = {"name": "tail", "unfreeze": "stage3", "epochs": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def runs(digits_folder, tmp_path_factory):
    """Two runs of one network on the same splits, one on others, and two with a refit on others."""
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in {
        "head": {"phases": [HEAD]},
        "tuned": {"phases": [HEAD, TAIL], "training.rollback": False},
        "split": {"phases": [HEAD, TAIL], "training.rollback": False, "data.test_fraction": 0.3},
        "other": {"phases": [HEAD], "training.refit": True, "seed": 1},
        "firm": {"phases": [FIRM], "training.refit": True, "seed": 1},
    }.items():
        kt.fine_tune(
            digits_folder,
            output=folder / name,
            reporter=SilentReporter(),
            **{**FIELDS, **changes},
        )
    return folder


@pytest.fixture(scope="module")
def ensemble(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("combined") / "ensemble"
    status = main([str(runs / "other"), str(runs / "firm"), "--output", str(folder)])
    assert status == 0
    return kt.load_run(folder)


def outputs_of(run, pixels):
    return predict_pixels(run.model, pixels, activation=run.task.activation)


def some_pixels():
    return np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)


def test_a_joined_network_gives_the_mean_probability_and_at_most_the_mean_loss(runs):
    members = [load_run(runs / name) for name in ("head", "tuned")]
    pixels = some_pixels()
    own = [outputs_of(run, pixels) for run in members]
    network = dataclasses.replace(members[0], model=joined(members))
    found = outputs_of(network, pixels)
    assert np.abs(own[0] - own[1]).max() > 0.01
    np.testing.assert_allclose(found, np.mean(own, axis=0), atol=1e-6)
    task, values = members[0].task, np.arange(7) % 10
    losses = [task.example_losses(values, one).mean() for one in (found, *own)]
    assert losses[0] < np.mean(losses[1:])


def test_a_member_that_is_joined_with_itself_is_the_member(runs):
    member = load_run(runs / "tuned")
    twice = dataclasses.replace(member, model=joined([member, member]))
    pixels = some_pixels()
    np.testing.assert_allclose(outputs_of(twice, pixels), outputs_of(member, pixels), atol=1e-6)
    for one, other in zip(
        mean_weights([member.model] * 3), member.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_the_mean_of_weights_has_the_mean_logits_where_only_the_head_differs(runs):
    member = load_run(runs / "head")
    moved = averaged(member.model, member.model.get_weights())
    kernel = moved.get_layer("logits").kernel
    kernel.assign(np.array(kernel) * 3)
    soup = averaged(member.model, mean_weights([member.model, moved]))
    pixels = np.float32(some_pixels())
    logits = [np.array(model(pixels)) for model in (member.model, moved, soup)]
    np.testing.assert_allclose(logits[2], (logits[0] + logits[1]) / 2, rtol=1e-4, atol=1e-4)


def test_members_come_in_an_order_that_does_not_depend_on_the_words(runs):
    paths = [runs / "head", runs / "tuned"]
    names = [
        [one.name for one in load_members(given, how="soup", reporter=SilentReporter()).items]
        for given in (paths, paths[::-1])
    ]
    assert names[0] == names[1]


def test_an_ensemble_is_an_ordinary_run_with_at_most_the_mean_loss(ensemble):
    """Of runs with a refit, so that all are taken."""
    report = json.loads((ensemble.path / "combination.json").read_text())
    *members, own = report["rows"]
    assert [row["is_taken"] for row in members] == [True, True]
    assert [row["val_loss"] for row in report["rows"]] == [None] * 3
    assert own["test_loss"] <= np.mean([row["test_loss"] for row in members])
    assert ensemble.evaluation.accuracy == pytest.approx(own["score"])
    assert ensemble.evaluate(reporter=SilentReporter()).accuracy == pytest.approx(own["score"])
    metrics = json.loads((ensemble.path / "metrics.json").read_text())
    assert metrics["export"]["label_agreement"] == 1
    folder = ensemble.export(reporter=SilentReporter())
    assert folder.name == "2"
    card = json.loads((folder / "card.json").read_text())
    assert card["backbone"] == "small"
    assert card["data"]["num_test"] == report["num_test"]
    found = ensemble.predict(some_pixels())
    expected = outputs_of(load_run(ensemble.path), some_pixels())
    np.testing.assert_allclose([one.outputs for one in found], expected, atol=1e-6)


def test_a_soup_of_copies_is_the_member(runs, tmp_path):
    shutil.copytree(runs / "tuned", tmp_path / "copy")
    found = kt.combine(
        [runs / "tuned", tmp_path / "copy"],
        how="soup",
        output=tmp_path / "soup",
        reporter=SilentReporter(),
    )
    for one, other in zip(
        found.model.get_weights(), load_run(runs / "tuned").model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    rows = json.loads((found.path / "combination.json").read_text())["rows"]
    assert sorted(row["is_taken"] for row in rows) == [False, True, True]


def weights_by_layer(model, *, of_head):
    return [
        np.array(variable)
        for layer in model.layers
        if (layer.name == "logits") == of_head
        for variable in layer.weights
    ]


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_line_has_the_lowest_loss_between_two_runs_and_begins_and_ends_at_them(runs, tmp_path):
    words = [str(runs / "tuned"), "how=line", str(runs / "head")]
    assert main([*words, "--output", str(tmp_path / "line")]) == 0
    found = kt.load_run(tmp_path / "line")
    report = json.loads((found.path / "combination.json").read_text())
    points, rows = report["points"], report["rows"]
    assert [point["position"] for point in points] == [n / 10 for n in range(11)]
    losses = [point["val_loss"] for point in points]
    assert losses[0] == pytest.approx(rows[0]["val_loss"])
    assert losses[-1] == pytest.approx(rows[1]["val_loss"])
    assert rows[2]["val_loss"] == pytest.approx(min(losses))
    share = points[int(np.argmin(losses))]["position"]
    better, other = (load_run(runs / row["name"]).model.get_weights() for row in rows[:2])
    between = [(1 - share) * a + share * b for a, b in zip(better, other, strict=True)]
    assert_close(found.model.get_weights(), between)
    metrics = json.loads((found.path / "metrics.json").read_text())
    assert metrics["export"]["label_agreement"] == 1
    assert "share of the other run" in (found.path / "combination.md").read_text()


def test_changes_are_added_to_the_trunk_and_removed_from_it(runs, tmp_path):
    """Of a whole change: added it is the other trunk, removed from itself the pretrained one."""
    shutil.copytree(runs / "tuned", tmp_path / "copy")
    head, tuned = (load_run(runs / name).model for name in ("head", "tuned"))
    found = kt.combine(
        [runs / "head", runs / "tuned"],
        how="add",
        scale=1.0,
        output=tmp_path / "sum",
        reporter=SilentReporter(),
    )
    for of_head, model in ((True, head), (False, tuned)):
        own = weights_by_layer(found.model, of_head=of_head)
        assert_close(own, weights_by_layer(model, of_head=of_head))
    words = [str(runs / "tuned"), str(tmp_path / "copy"), "how=negate", "scale=1"]
    assert main([*words, "--output", str(tmp_path / "rest")]) == 0
    rest = kt.load_run(tmp_path / "rest").model
    for of_head, model in ((True, tuned), (False, head)):
        own = weights_by_layer(rest, of_head=of_head)
        assert_close(own, weights_by_layer(model, of_head=of_head))
    assert any(
        np.abs(one - other).max() > 1e-3
        for one, other in zip(
            weights_by_layer(head, of_head=False),
            weights_by_layer(tuned, of_head=False),
            strict=True,
        )
    )


def test_the_scale_of_changes_is_chosen_on_validation(runs, tmp_path):
    found = combine_runs(
        [runs / "head", runs / "tuned"],
        how="add",
        output=tmp_path / "sum",
        reporter=SilentReporter(),
    )
    losses = {point.position: point.val_loss for point in found.choice.points}
    assert list(losses) == [n / 10 for n in range(11)]
    assert losses[0.0] == pytest.approx(found.members.best.val_loss)
    assert found.choice.val_loss == min(losses.values())
    assert found.choice.title.startswith("head plus ")


def test_runs_that_do_not_fit_together_are_refused(runs, tmp_path):
    def combine(*names, how="ensemble", scale=None):
        combine_runs(
            [runs / name for name in names],
            how=how,
            scale=scale,
            output=tmp_path / "refused",
            reporter=SilentReporter(),
        )

    with pytest.raises(SpecError, match="nothing to combine"):
        combine("head")
    with pytest.raises(SpecError, match="no combination called"):
        combine("head", "tuned", how="stew")
    with pytest.raises(DataError, match="other validation or test images"):
        combine("head", "other")
    shutil.copytree(runs / "other", tmp_path / "copy")
    with pytest.raises(SpecError, match="trained on"):
        combine("other", tmp_path / "copy", how="soup")
    for names, how, scale, text in (
        (("head", "tuned", "split"), "line", None, "between two runs"),
        (("other", tmp_path / "copy"), "line", None, "trained on"),
        (("head", "tuned"), "soup", 0.5, "has no scale"),
        (("head", "tuned"), "add", -1.0, "out of range"),
        (("tuned",), "add", None, "no changes"),
        (("tuned", "head"), "add", None, "changed nothing"),
        (("tuned", "other"), "negate", None, "other networks"),
        (("other", tmp_path / "copy"), "add", None, "the first run was trained on"),
    ):
        with pytest.raises(SpecError, match=text):
            combine(*names, how=how, scale=scale)
    with pytest.raises(DataError, match="of the first"):
        combine("head", "split", how="add")
    assert main([str(runs / "head"), str(runs / "tuned"), "how=add", "scale=much"]) == 2
    assert not (tmp_path / "refused").exists()
