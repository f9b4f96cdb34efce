"""The space is data: wrong entries are told before anything is read, right ones reach the spec."""

import keras_tuner
import numpy as np
import pytest

from keras_transfer.config import override, spec_from_dict, spec_to_dict, with_dotted_space
from keras_transfer.errors import SpecError
from keras_transfer.experiments.tune.space import (
    check_space,
    choices,
    declare,
    num_combinations,
    read_space,
    scales,
    values_of,
)
from keras_transfer.specs import ParameterSpec, RunSpec

GOOD = {
    "phases.0.learning_rate": {"low": 1e-4, "high": 1e-2, "sampling": "log"},
    "phases.0.epochs": {"low": 5, "high": 15},
    "phases.0.optimizer": {"values": ["adamw", "sgd"]},
    "phases.0.train_batchnorm": {"values": [True, False]},
    "phases.0.weight_decay": {"values": [0, 1e-4]},
    "phases.1.unfreeze": {"values": ["stage5", "stage4"]},
    "phases.1.layer_decay": {"low": 0.5, "high": 1.0},
    "training.batch_size": {"low": 16, "high": 64, "step": 16},
    "training.label_smoothing": {"low": 0, "high": 0.2, "step": 0.1},
    "views.policy": {"values": ["none", "light", "strong"]},
    "model.head": {"values": ["linear", "mlp"]},
    "model.last_stage": {"values": ["", "stage4"]},
    "model.backbone": {"values": ["resnet50", "vgg16"]},
}


def with_space(space, **changes) -> RunSpec:
    return override(RunSpec(), {"search.space": space, **changes})


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({}, "no search space"),
        ({"data.path": {"values": ["a", "b"]}}, "cannot vary data.path"),
        ({"seed": {"values": [1, 2]}}, "cannot vary seed"),
        ({"phases.2.epochs": {"values": [1, 2]}}, "there are 2 phases"),
        ({"phases.0.name": {"values": ["a", "b"]}}, "cannot vary phases.0.name"),
        ({"model.dropuot": {"values": [0.1]}}, "did you mean 'dropout'"),
        ({"model.dropout": {"values": [0.1, 2.0]}}, "out of range"),
        ({"model.dropout": {"values": []}}, "at least one entry"),
        ({"model.dropout": {}}, "either values"),
        ({"model.dropout": {"low": 0.1}}, "either values"),
        ({"model.dropout": {"low": 0.1, "high": 0.2, "values": [0.1]}}, "either values"),
        ({"model.dropout": {"low": 0.2, "high": 0.1}}, "low below high"),
        ({"model.dropout": {"low": 0.0, "high": 0.1, "sampling": "log"}}, "low above 0"),
        ({"model.dropout": {"values": [0.1, 0.1]}}, "each of them once"),
        ({"model.dropout": {"low": 0.1, "high": float("inf")}}, "finite numbers"),
        ({"model.dropout": {"low": 0.1, "high": 0.5, "step": -0.1}}, "step above 0"),
        ({"model.dropout": {"low": 0.1, "high": 0.5, "step": 5}}, "at most high"),
        ({"model.dropout": {"low": 0.1, "high": 0.5, "step": "x"}}, "a number as step"),
        ({"training.batch_size": {"low": 8, "high": 16, "step": 0.5}}, "whole for a whole field"),
        (
            {"model.dropout": {"low": 0.1, "high": 0.5, "step": 1e-4, "sampling": "log"}},
            "a factor",
        ),
        ({"model.head": {"values": ["linear", 1]}}, "values of one kind"),
        ({"model.head": {"low": "a", "high": "b"}}, "two finite numbers"),
        ({"model.head": {"values": ["linear", "mpl"]}}, "did you mean 'mlp'"),
        ({"training.batch_size": {"low": 1.5, "high": 8}}, "whole number"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(space, told):
    with pytest.raises(SpecError, match=told):
        check_space(with_space(space))


def test_hyperband_hands_out_epochs_by_itself():
    space = {"phases.0.epochs": {"values": [1, 2]}}
    check_space(with_space(space))
    with pytest.raises(SpecError, match="hyperband"):
        check_space(with_space(space, **{"search.tuner": "hyperband"}))


def test_kerastuner_gets_every_parameter_of_its_kind():
    spec = with_space(GOOD)
    check_space(spec)
    hp = keras_tuner.HyperParameters()
    declare(hp, spec)
    kinds = {parameter.name: type(parameter).__name__ for parameter in hp.space}
    assert list(kinds) == list(GOOD)
    assert kinds["phases.0.learning_rate"] == "Float"
    assert kinds["phases.0.epochs"] == kinds["training.batch_size"] == "Int"
    assert kinds["phases.0.train_batchnorm"] == "Boolean"
    assert kinds["views.policy"] == kinds["phases.0.weight_decay"] == "Choice"
    # The spec's own values are tried first, where they are in the space.
    assert hp.values["phases.0.learning_rate"] == 1e-3
    assert hp.values["views.policy"] == "light"
    assert hp.values["training.label_smoothing"] == 0.0
    assert hp.values["phases.0.epochs"] == 15


def test_proposals_become_values_of_the_spec():
    spec = with_space(GOOD)
    hp = keras_tuner.HyperParameters()
    declare(hp, spec)
    single = {
        "phases.0.learning_rate": 0.0012345679104328156,
        "phases.0.weight_decay": 9.999999747378752e-05,
        "phases.1.layer_decay": 1.0000001,
        "tuner/epochs": 3,
    }
    values = values_of(spec, {**hp.values, **single})
    assert values["phases.0.learning_rate"] == 0.00123457
    assert values["phases.0.weight_decay"] == 1e-4
    assert values["phases.1.layer_decay"] == 1.0
    assert set(values) == set(GOOD)
    trial = override(spec, values)
    assert trial.phases[0].learning_rate == 0.00123457
    assert trial.phases[1].unfreeze == "stage5"


def test_axes_of_figures_follow_the_space():
    spec = with_space(GOOD)
    assert scales(spec)["phases.0.learning_rate"] == "log"
    assert scales(spec)["phases.0.epochs"] == "linear"
    assert scales(spec)["views.policy"] == "choice"
    assert choices(spec)["phases.0.weight_decay"] == [0.0, 1e-4]
    assert "phases.0.epochs" not in choices(spec)


def test_a_space_survives_being_written_down():
    spec = with_space(GOOD)
    assert spec_from_dict(spec_to_dict(spec)) == spec


def test_one_entry_can_be_set_on_the_command_line():
    from keras_transfer.config import parse_assignments

    words = ["search.space.model.dropout={values=[0.1, 0.3]}", "search.trials=3"]
    spec = override(with_space(GOOD), parse_assignments(words))
    assert spec.search.space["model.dropout"].values == (0.1, 0.3)
    assert len(spec.search.space) == len(GOOD) + 1


def test_an_option_of_a_method_can_be_searched_before_the_spec_sets_it():
    name = "phases.1.method_options.alpha"
    spec = with_space({name: {"low": 0.1, "high": 0.4}}, **{"phases.1.method": "mixup"})
    check_space(spec)
    hp = keras_tuner.HyperParameters()
    declare(hp, spec)
    trial = override(spec, values_of(spec, {name: 0.30000001}))
    assert 0.1 <= hp.values[name] <= 0.4
    assert trial.phases[1].method_options == {"alpha": 0.3}


def test_all_wrong_entries_are_told_at_once():
    space = {"model.dropuot": {"values": [0.1]}, "seed": {"values": [1]}, "model.dropout": {}}
    with pytest.raises(SpecError, match="3 things cannot be used") as caught:
        check_space(with_space(space))
    for part in ("did you mean 'dropout'", "cannot vary seed", "either values"):
        assert part in str(caught.value)


def test_a_space_of_python_has_lists_dicts_and_numbers_of_numpy():
    given = {
        "lr": {"low": np.float64(1e-4), "high": 1e-2, "sampling": "log"},
        "views.count": np.array([2, 4]),
        "model.dropout": (0.0, 0.3),
        "model.head": ParameterSpec(values=("linear", "mlp")),
    }
    read = read_space(given)
    assert read["lr"] == {"low": 1e-4, "high": 1e-2, "sampling": "log"}
    assert read["views.count"] == {"values": [2, 4]}
    assert {type(value) for value in read["views.count"]["values"]} == {int}
    assert read["model.head"] == {"values": ["linear", "mlp"], "sampling": "linear"}
    assert with_space(read).search.space["model.dropout"].values == (0.0, 0.3)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"phases.1.learning_rate": 0.1}, ["phases.1.learning_rate", "Received: 0.1", "a list"]),
        ({"model.head": "mlp"}, ["model.head", "Received: 'mlp'"]),
        ({"model.dropout": []}, ["model.dropout", "Received: []"]),
        ({"phases": {"1": {"epochs": [1]}}}, ["write phases.1 as one name with dots"]),
        ({"lr": {"min": 1e-4, "max": 0.1}}, ["'min'", 'write {"lr": [value, other]}']),
        ({"lr": {"values": 0.1}}, ["Received: {'values': 0.1}"]),
        ({7: [1, 2]}, ["no valid entry for 7"]),
        (["lr"], ["no mapping", "Received: ['lr'] (list)"]),
        ({"lr": 0.1, "model.head": "mlp"}, ["2 things cannot be used", "'lr'", "'model.head'"]),
    ],
)
def test_a_malformed_space_of_python_is_refused_with_what_to_write(given, parts):
    with pytest.raises(SpecError) as caught:
        read_space(given)
    for part in (*parts, "Expected", "Received", "To fix it"):
        assert part in str(caught.value)


def test_short_names_are_taken_for_fields_as_those_that_are_set():
    said = []
    space = {"lr": {"low": 1e-4, "high": 1e-2}, "dropout": {"values": [0.0, 0.3]}}
    spec = with_dotted_space(with_space(space), said.append)
    assert list(spec.search.space) == ["phases.1.learning_rate", "model.dropout"]
    (sentence,) = said
    listed = override(RunSpec(), {"search.space.lr": [1e-4, 1e-2]}).search.space["lr"]
    assert listed.values == (1e-4, 1e-2)
    assert sentence.startswith("lr is taken for phases.1.learning_rate")
    check_space(spec)
    both = {"lr": {"low": 1e-4, "high": 1e-2}, "phases.1.learning_rate": {"values": [0.1]}}
    with pytest.raises(SpecError, match=r"phases.1.learning_rate twice"):
        with_dotted_space(with_space(both), said.append)
    wrong = {"dropuot": {"values": [0.1]}, "epoch": {"values": [1]}}
    with pytest.raises(SpecError, match=r"2 things(.|\n)*dropout(.|\n)*epochs"):
        with_dotted_space(with_space(wrong), said.append)


@pytest.mark.parametrize(
    ("space", "count"),
    [
        ({"model.dropout": {"values": [0.0, 0.3]}, "views.count": {"low": 1, "high": 4}}, 8),
        ({"model.dropout": {"low": 0.0, "high": 0.3, "step": 0.1}}, 4),
        ({"model.dropout": {"low": 0.0, "high": 0.3}}, float("inf")),
        ({"training.batch_size": {"low": 8, "high": 64, "sampling": "log"}}, float("inf")),
    ],
)
def test_combinations_are_counted(space, count):
    assert num_combinations(with_space(space)) == count
