"""What has an effect on a training is told from the spec and the number of images."""

from types import SimpleNamespace

import numpy as np
import pytest

from keras_transfer.config import override, with_search_space
from keras_transfer.errors import SpecError
from keras_transfer.experiments.tune.effects import (
    Trained,
    fields_with_effect,
    idle_fields,
    without_effect,
)
from keras_transfer.experiments.tune.plan import describe_plan, plan_search
from keras_transfer.specs import DEFAULT_SPACE, RunSpec
from keras_transfer.tasks.task import Monitor

FEW, MANY = Trained(277, may_refit=False), Trained(2000, may_refit=False)
STRENGTH, RATE, SMOOTHING = (
    "phases.0.method_options.strength",
    "phases.1.learning_rate",
    "training.label_smoothing",
)
ONE_PHASE = {"phases": [{"name": "frozen", "method": "exact"}]}


def with_space(space, **changes) -> RunSpec:
    named = {name: {"values": values} for name, values in space.items()}
    return override(RunSpec(), {**changes, "search.space": named})


def test_the_default_space_has_only_fields_with_an_effect():
    spec = with_search_space(RunSpec())
    assert without_effect(spec, MANY) == {}
    left_out = without_effect(spec, FEW)
    assert set(left_out) == set(DEFAULT_SPACE) - {STRENGTH}
    assert "there are 277 training images, and it needs 1,000" in left_out[RATE]
    assert "solved exactly" in left_out[SMOOTHING]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"task": "regression"}, set(DEFAULT_SPACE) - {SMOOTHING}),
        (ONE_PHASE, {STRENGTH, SMOOTHING}),
        ({"phases.0.method_options": {"cross_validate": True}}, set(DEFAULT_SPACE) - {STRENGTH}),
        ({"phases": [{"method": "supervised"}]}, {"phases.0.learning_rate", SMOOTHING}),
    ],
)
def test_the_default_space_fits_the_phases_and_the_task(changes, names):
    assert set(with_search_space(override(RunSpec(), changes)).search.space) == names


@pytest.mark.parametrize(
    ("space", "changes", "told"),
    [
        ({"phases.0.learning_rate": [1e-3, 1e-2]}, {}, "solved exactly"),
        ({"phases.0.epochs": [1, 2], "model.dropout": [0.0, 0.3]}, {}, None),
        ({"phases.0.epochs": [1, 2], "phases.0.unfreeze": ["head", "last"]}, {}, None),
        ({"phases.1.epochs": [1, 2]}, {}, "is left out"),
        ({"phases.1.epochs": [1, 2], "phases.1.min_images": [0, 500]}, {}, None),
        ({"phases.1.min_images": [0, 500]}, {}, None),
        ({"phases.1.min_images": [500, 900]}, {}, "do not change whether"),
        ({"phases.1.layer_decay": [0.5, 1.0]}, {"phases.1.min_images": 0}, None),
        (
            {"phases.1.layer_decay": [0.5, 1.0]},
            {"phases.1.min_images": 0, "phases.1.unfreeze": "head"},
            "trains no layer below the head",
        ),
        ({STRENGTH: [0.1, 1.0]}, {"model.head": "mlp"}, "hidden layer is not solved"),
        ({"model.hidden_units": [8, 16]}, {}, "no hidden layer"),
        ({"model.hidden_units": [8, 16], "model.head": ["linear", "mlp"]}, {}, None),
        ({"training.batch_size": [8, 16]}, {}, "every phase that is trained is solved"),
        ({"training.rollback": [True, False]}, {}, "only one phase"),
        ({"training.refit": [True, False]}, {}, "without a refit"),
        ({"views.rotation": [0.0, 20.0]}, {}, None),
        ({"views.rotation": [0.0, 20.0]}, {"views.count": 1}, "plain images only"),
        ({"views.rotation": [0.0, 20.0], "views.count": [1, 4]}, {"views.count": 1}, None),
        ({"views.erasing_area": [0.1, 0.2]}, {}, "views.erasing is off"),
        ({"views.erasing_area": [0.1, 0.2]}, {"views.erasing": 0.5}, None),
        ({"model.pooling": ["avg", "max"]}, {}, None),
    ],
)
def test_a_field_that_changes_nothing_is_told_with_the_reason(space, changes, told):
    left_out = without_effect(with_space(space, **changes), FEW)
    name = next(iter(space))
    assert name not in left_out if told is None else told in left_out[name]


def test_training_refitted_in_folds_is_a_field_with_an_effect():
    spec = with_space({"training.refit": [True, False]})
    assert without_effect(spec, Trained(277, may_refit=True)) == {}


@pytest.mark.parametrize(
    ("changes", "is_idle"),
    [
        ({}, True),
        ({"model.dropout": 0.1}, False),
        ({"phases.1.min_images": 0}, False),
        ({"model.weights": "none"}, False),
        ({"model.head": "mlp"}, False),
        ({"task": "multi_label", "training.sampling": "balanced"}, False),
    ],
)
def test_a_seed_changes_nothing_where_all_is_solved_on_given_weights(changes, is_idle):
    spec = override(RunSpec(), changes)
    assert ("seed" in idle_fields(spec, FEW)) == is_idle
    again = override(spec, {"seed": 1})
    assert (fields_with_effect(spec, FEW) == fields_with_effect(again, FEW)) == is_idle


def planned(spec, num_train=277):
    rows = np.arange(num_train + 60)
    splits = SimpleNamespace(train=rows[:num_train], val=rows[num_train:], test=rows[:0])
    return plan_search(SimpleNamespace(session=SimpleNamespace(spec=spec), splits=[splits]))


def told(spec, **given):
    monitor = Monitor("accuracy", "max", is_share=True)
    return " ".join(describe_plan(planned(spec, **given), spec, monitor))


def test_a_plan_says_what_varies_what_a_score_is_and_how_many_trials_there_are():
    spec = with_search_space(RunSpec())
    few = planned(spec)
    assert list(few.spec.search.space) == [STRENGTH]
    assert (few.num_trials, few.spec.search.tuner, few.is_complete) == (4, "grid", True)
    text = told(spec)
    assert f"The search varies {STRENGTH} (0.01, 0.03, 0.1, 0.3)." in text
    assert "accuracy (higher is better; ties: the lower loss, then the earlier trial)" in text
    assert "on 60 images of the validation split: one image is 1.7 points" in text
    assert "All 4 combinations are tried" in text
    many = planned(spec, num_train=2000)
    assert (many.num_trials, many.spec.search.tuner, many.left_out) == (20, "bayesian", {})
    text = told(override(spec, {"search.time_budget": "5m"}), num_train=2000)
    assert "Up to 20 trials are trained (search.trials); after 5m none is started" in text
    assert "(from 0.0001 to 0.003, logarithmic)" in text


def test_a_grid_says_how_much_of_it_is_tried_and_hyperband_sets_its_own_length():
    spec = with_space({"training.batch_size": [8, 16], RATE: [1e-3, 1e-2]})
    spec = override(spec, {"search.tuner": "grid", "search.trials": 3})
    assert "Up to 3 trials are trained (search.trials), of 4 combinations" in told(
        spec, num_train=2000
    )
    plan = planned(override(spec, {"search.tuner": "hyperband"}), num_train=2000)
    assert (plan.num_trials, plan.spec.search.tuner) == (None, "hyperband")


def test_a_plan_without_any_field_left_is_refused():
    spec = with_space({RATE: [1e-3, 1e-2], SMOOTHING: [0.0, 0.1]})
    with pytest.raises(SpecError, match=r"phases.1.min_images=0(.|\n)*label_smoothing"):
        planned(spec)
