"""The file that `init` writes: it means what it was made from, and so do its comments."""

import re

import pytest

from keras_transfer.config import load_spec, override, spec_to_dict
from pipelines import init
from pipelines.arguments import USER_ERROR


def write(tmp_path, *words: str):
    file = tmp_path / "mine.toml"
    assert init.main([*words, "--output", str(file)]) == 0
    return file


def uncommented(text: str) -> str:
    return re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("option", [(), ("--all",)])
def test_a_folder_gives_a_file_with_its_settings(digits_folder, tmp_path, option):
    changes = ["model.backbone=mobilenet_0.25", "phases.1.unfreeze=stage4", "data.resize=pad"]
    file = write(tmp_path, str(digits_folder), *changes, *option)
    spec = load_spec(file)
    assert (spec.name, spec.data.path) == (digits_folder.name, str(digits_folder))
    assert (spec.model.backbone, spec.phases[1].unfreeze) == ("mobilenet_0.25", "stage4")
    text = file.read_text()
    assert re.search(r"^# [1-9][\d,]* images of ", text)
    assert "# batch_size = 32" in text
    assert ("# weight_decay = " in text) == bool(option)
    # The defaults in the comments are the defaults.
    defaults = tmp_path / "all.toml"
    defaults.write_text(uncommented(text))
    assert load_spec(defaults) == spec


def test_tables_of_options_are_written(digits_folder, tmp_path):
    file = write(
        tmp_path, "lite", f"data.path={digits_folder}", "phases.0.method_options.strength=2.0"
    )
    expected = override(
        load_spec("lite"),
        {"data.path": str(digits_folder), "phases.0.method_options.strength": 2.0},
    )
    assert spec_to_dict(load_spec(file)) == spec_to_dict(expected)
    assert load_spec(file).search.space


def test_a_file_that_is_there_is_not_overwritten(digits_folder, tmp_path, capsys):
    file = write(tmp_path, str(digits_folder), "backbone=mobilenet_0.25")
    file.write_text("mine")
    assert init.main([str(digits_folder), "backbone=vgg16", "--output", str(file)]) == USER_ERROR
    assert "exists already" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_folders_of_the_file_are_made_and_names_are_quoted(digits_folder, tmp_path, capsys):
    file = tmp_path / "new folder" / "mine.toml"
    assert init.main([str(digits_folder), "backbone=vgg16", "--output", str(file)]) == 0
    assert load_spec(file).model.backbone == "vgg16"
    assert f"pipelines.train '{file}'" in capsys.readouterr().err


def test_a_folder_without_images_leaves_no_file(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    file = tmp_path / "mine.toml"
    words = [str(tmp_path / "empty"), "backbone=vgg16", "--output", str(file)]
    assert init.main(words) == USER_ERROR
    assert "Received" in capsys.readouterr().err
    assert not file.exists()
