"""Specs: strict, round-tripping, and helpful when they refuse."""

import json
import subprocess
import sys

import pytest

from keras_transfer.config import (
    PRESETS,
    describe_fields,
    load,
    load_spec,
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
