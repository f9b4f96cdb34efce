"""Specs: strict, round-tripping, and helpful when they refuse."""

import json
import re
import subprocess
import sys

import pytest

from keras_transfer.config import (
    PRESETS,
    describe_fields,
    describe_other_names,
    describe_without_effect,
    load,
    load_spec,
    make_spec,
    override,
    parse_assignments,
    spec_from_dict,
    spec_to_dict,
)
from keras_transfer.errors import SpecError
from keras_transfer.fields import similar_path
from keras_transfer.specs import PhaseSpec, PretrainSpec, RunSpec


def test_spec_survives_json_when_written_and_read_back():
    spec = override(RunSpec(), {"phases.1.learning_rate": 3e-5, "data.train_size": 40})
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec


def test_typed_words_take_the_type_of_their_field():
    words = ["data.path=2024-05-01", "model.weights=none", "data.train_size=none"]
    words += ["phases.0.epochs=3", "training.rollback=false", "model.dropout=0", "name=1e3"]
    spec = override(RunSpec(), parse_assignments(words))
    assert spec.data.path == "2024-05-01"
    assert spec.model.weights == "none"
    assert spec.data.train_size is None
    assert spec.phases[0].epochs == 3
    assert spec.training.rollback is False
    assert spec.model.dropout == 0.0
    assert spec.name == "1e3"


def test_value_with_equals_sign_is_kept_whole():
    assert override(RunSpec(), parse_assignments(["data.path=a=b"])).data.path == "a=b"


def test_number_just_past_the_end_adds_a_phase_like_the_last():
    spec = override(RunSpec(), {"phases.2.unfreeze": "stage4"})
    assert len(spec.phases) == 3
    assert spec.phases[2].unfreeze == "stage4"
    assert spec.phases[2].learning_rate == spec.phases[1].learning_rate


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"phases.1.learnin_rate": 1}, "'learning_rate'"),
        ({"dta.path": "x"}, "'data'"),
        ({"phases.7.epochs": 1}, "from 0 to 1"),
        ({"phases.0": 3}, "phases.0.epochs"),
        ({"model.backbone.size": 3}, "a single value"),
        ({"data.image_size": "big"}, "a whole number"),
        ({"data.image_size": 2.5}, "a whole number"),
        ({"training.rollback": 1}, "true or false"),
        ({"model.dropout": 2}, "from 0 to 0.95"),
        ({"phases.0.learning_rate": float("nan")}, "0 or more"),
        ({"views.policy": "lihgt"}, "'light'"),
        ({"phases": []}, "at least one entry"),
        ({"phases.1.name": "frozen"}, "name of its own"),
        ({"phases.2.epochs": 5}, "phases.1 is 'fine-tune'"),
        ({"phases.2.epochs": 5}, "write phases.1.epochs for the last phase"),
        ({"data.val_split": "0.2"}, "write data.val_fraction=0.2"),
        ({"data.train_split": "0.8"}, "leave it out"),
        ({"phases.0.warmup_epochs": 20}, "warm-up"),
        ({"training.class_weights": "balanced", "training.sampling": "balanced"}, "at most one"),
    ],
)
def test_override_refuses_and_says_what_would_do(changes, part):
    with pytest.raises(SpecError) as caught:
        override(RunSpec(), changes)
    assert part in str(caught.value)
    assert "Received: " in str(caught.value)
    assert "To fix it: " in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *(name.replace(".N.", ".0.") for name, _, _ in describe_fields() if "space" not in name),
        *("data", "phases", "views"),
    ],
)
def test_the_error_of_a_wrong_type_gives_an_example_that_is_right(name):
    with pytest.raises(SpecError) as caught:
        override(RunSpec(), {name: b"bytes"})
    for example in re.findall(r"[a-z_0-9.]+=\S*[^\s,]", caught.value.fix):
        override(RunSpec(), parse_assignments([example.replace("NAME", "name")]))
    assert f"{name}" in caught.value.fix or "choose one of" in caught.value.fix


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("val_split=0.2", "data.val_fraction", 0.2),
        ("val_split=.2", "data.val_fraction", 0.2),
        ("test_split=0.1", "data.test_fraction", 0.1),
        ("val_split=valid", "data.val_split", "valid"),
        ("augment=strong", "views.policy", "strong"),
        ("optimizer=sgd", "phases.1.optimizer", "sgd"),
        ("patience=3", "phases.1.patience_epochs", 3),
        ("random_state=7", "seed", 7),
        ("data=photos", "data.path", "photos"),
        ("dropout=0.1", "model.dropout", 0.1),
    ],
)
def test_names_that_are_near_are_taken_for_fields(word, field, value):
    changes = parse_assignments([word])
    spec = make_spec(None, **changes)
    assert dict(flat(spec_to_dict(spec)))[field] == value
    (name,) = changes
    is_own = word in ("val_split=valid", "dropout=0.1")
    told = [] if is_own else [f"{name} is taken for {field}"]
    assert [text.partition(",")[0].rstrip(".") for text in describe_other_names(changes)] == told


def flat(values, prefix=""):
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield f"{prefix}{name}", value
        if isinstance(value, dict | list):
            yield from flat(value, f"{prefix}{name}.")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("num_classes", "leave it out"),
        ("loss", "the task decides it"),
        ("method", "phases.0.method=… is of the first one, phases.1.method=… of the last"),
        ("mixup", "write phases.1.method=mixup"),
        ("freeze", "phases.1.unfreeze=head"),
        ("output_dir", "write --output DIR"),
        ("dry_run", "write --dry-run"),
        ("gpu", "devices.strategy=cpu"),
    ],
)
def test_names_that_are_no_field_say_what_to_write_instead(name, told):
    with pytest.raises(SpecError) as caught:
        make_spec(None, **{name: 1})
    assert told in caught.value.fix


def test_fields_that_a_solved_head_does_not_have_are_told():
    changes = {"phases.0.epochs": 3, "phases.0.optimizer": "sgd", "phases.1.epochs": 3}
    (told,) = describe_without_effect(changes, override(RunSpec(), changes))
    assert told.startswith("phases.0.epochs and phases.0.optimizer have no effect")
    assert "phases.0.method=supervised" in told
    for trained in ({"phases.0.method": "supervised"}, {"model.dropout": 0.1}):
        assert describe_without_effect(changes, override(RunSpec(), changes | trained)) == []


def test_trials_are_folds_times_seeds_times_sizes():
    assert RunSpec().num_trials == 1
    assert override(RunSpec(), {"folds": 5, "seeds": 3}).num_trials == 15
    assert override(RunSpec(), {"halvings": 4, "seeds": 2}).num_trials == 10


def test_word_without_equals_sign_is_refused():
    with pytest.raises(SpecError, match="field=value"):
        parse_assignments(["epochs"])


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_preset_loads(preset):
    assert load_spec(preset.stem).name


@pytest.mark.parametrize("name", ["letters_resnet50", "letters_vgg16"])
def test_every_pretraining_preset_loads(name):
    assert load(PretrainSpec, name, presets=PRESETS / "pretraining").name == name


def test_unknown_preset_offers_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'quickstart'"):
        load_spec("quikstart")


def test_broken_file_names_the_place(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("seed = = 3")
    with pytest.raises(SpecError, match=r"mine\.toml"):
        load_spec(file)


def test_toml_file_and_run_folder_load(tmp_path):
    (tmp_path / "mine.toml").write_text('name = "mine"\n[[phases]]\nepochs = 2\n')
    spec = load_spec(tmp_path / "mine.toml")
    assert spec.phases == (PhaseSpec(epochs=2),)
    (tmp_path / "spec.json").write_text(json.dumps(spec_to_dict(spec)))
    assert load_spec(tmp_path) == spec


def test_every_field_has_a_help_text():
    fields = list(describe_fields())
    assert len(fields) > 50
    assert all(text for _, _, text in fields)
    assert ("phases.N.epochs", "10", "passes over the training split") in fields
    assert ("phase.epochs", "8", "passes over the training split") in describe_fields(PretrainSpec)


def test_ground_floor_does_not_import_tensorflow_or_keras():
    code = (
        "import sys, keras_transfer, keras_transfer.config;"
        "sys.exit(any(name in sys.modules for name in ('keras', 'tensorflow', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_storing_features_needs_a_number_of_views():
    with pytest.raises(SpecError, match="cannot be cached"):
        override(RunSpec(), {"views.count": None, "cache.mode": "on"})


def test_a_missing_path_is_compared_with_those_beside_it(tmp_path):
    (tmp_path / "flowers").mkdir()
    assert similar_path(tmp_path / "flowerz") == f"did you mean '{tmp_path / 'flowers'}'? Or "
    assert similar_path(tmp_path / "ants") == ""
    assert similar_path(tmp_path / "nowhere" / "flowers") == ""
