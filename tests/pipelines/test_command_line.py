"""The verbs as a user types them: exit statuses, messages, and help without TensorFlow."""

import json
import os
import subprocess
import sys

import pytest

import keras_transfer
from pipelines import adapt, arguments, auto, cli, compress, predict, pretrain, probe, train


def test_help_answers_without_importing_tensorflow():
    code = (
        "import sys, runpy; sys.argv = ['train', '--help']\n"
        "try: runpy.run_module('pipelines.train', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('keras', 'tensorflow', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "phases.N.learning_rate" in done.stdout


def test_print_spec_can_be_fed_back(capsys, tmp_path):
    assert train.main(["quickstart", "phases.0.epochs=3", "--print-spec"]) == 0
    printed = capsys.readouterr().out
    file = tmp_path / "spec.json"
    file.write_text(printed)
    assert json.loads(printed)["phases"][0]["epochs"] == 3
    assert train.main([str(file), "--print-spec"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["quikstart"], "quickstart"),
        (["quickstart", "model.dropuot=0"], "dropout"),
        (["quickstart", "phases.0.epochs=many"], "a whole number"),
        (["quickstart", "epochs"], "field=value"),
        (["quickstart", "--epochs", "5"], "write epochs=5, without dashes"),
        (["quickstart", "--batch-size=8"], "write batch_size=8, without dashes"),
        (["quickstart", "--outptu", "x"], "did you mean '--output'?"),
        (["quickstart", "--fast"], "--help explains all options"),
        ([], "give source: a folder with a sub-folder"),
        (["lite"], "add data.path=my_photos"),
    ],
)
def test_wrong_words_end_with_status_2_and_a_hint(words, part, capsys):
    assert train.main(words) == arguments.USER_ERROR
    assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "words", "told"),
    [
        (auto, ["photos", "--time_budget", "5m"], "write time_budget=5m, without dashes"),
        (adapt, ["run", "photos", "--kind", "coral"], "write kind=coral, without dashes"),
        (compress, ["run", "--channels=0.3"], "write channels=0.3, without dashes"),
        (predict, ["run", "photo.jpg", "--epochs", "5"], "--help explains all options"),
        (predict, ["run"], "give PATH: file, folder or - for stdin"),
    ],
)
def test_options_of_other_verbs_say_what_to_write_instead(verb, words, told, capsys):
    assert verb.main(words) == arguments.USER_ERROR
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("word", ["version", "help", "help-fields"])
def test_words_that_end_the_command(word, capsys):
    with pytest.raises(SystemExit) as end:
        train.main([f"--{word}"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert (said == f"keras_transfer {keras_transfer.__version__}\n") == (word == "version")
    assert ("search.hyperband_factor" in said) == (word == "help-fields")
    assert ("model.backbone" in said) == (word != "version")


def test_a_wrong_verb_is_named_with_the_right_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["keras-transfer", "trian"])
    assert cli.main() == arguments.USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("\nerror: there is no verb 'trian'.")
    assert "did you mean 'train'?" in said
    monkeypatch.setattr(sys, "argv", ["keras-transfer", "--version"])
    assert cli.main() == 0
    assert capsys.readouterr().out == f"keras_transfer {keras_transfer.__version__}\n"


def test_a_module_that_is_no_verb_names_the_nearest_one():
    command = [sys.executable, "-m", "pipelines.trian", "my_photos"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == arguments.USER_ERROR
    assert "there is no verb 'trian'" in done.stderr
    assert "did you mean 'train'" in done.stderr


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("batch=8", "training.batch_size"),
        ("batch_size=8", "training.batch_size"),
        ("model=vgg16", "model.backbone"),
        ("img_size=64", "data.image_size"),
        ("epochs=3", "phases.1.epochs"),
        ("lr=0.5", "phases.1.learning_rate"),
    ],
)
@pytest.mark.parametrize("source", ["quickstart", "folder"])
def test_names_of_other_libraries_are_taken_for_fields(word, field, source, tmp_path, capsys):
    assert train.main([source.replace("folder", str(tmp_path)), word, "--print-spec"]) == 0
    shown = capsys.readouterr()
    value = json.loads(shown.out)
    for name in field.split("."):
        value = value[int(name) if name.isdecimal() else name]
    name, _, text = word.partition("=")
    assert str(value) == text
    assert (f"{name} is taken for {field}" in shown.err) == (name != "batch_size")


def test_a_name_that_is_like_no_other_gets_no_stranger(capsys):
    assert train.main(["quickstart", "colour=red"]) == arguments.USER_ERROR
    said = capsys.readouterr().err
    assert "did you mean" not in said
    assert "--help-fields lists all fields" in said


def test_a_backend_that_nothing_runs_on_is_told_with_the_one_that_was_meant(monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "JAX")
    assert train.main(["quickstart", "--print-spec"]) == arguments.USER_ERROR
    assert "set KERAS_BACKEND=jax" in capsys.readouterr().err
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    assert train.main(["quickstart", "--print-spec"]) == arguments.USER_ERROR
    assert "expected: tensorflow or jax" in capsys.readouterr().err.lower()


@pytest.mark.parametrize("words", [["--dry-run"], ["seeds=2"]])
def test_what_one_host_does_is_refused_on_several_and_leaves_no_folder(
    words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert train.main(["quickstart", "devices.hosts=2", *words]) == arguments.USER_ERROR
    assert "runs on one host only" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_hosts_that_are_refused_leave_no_folder(forked_calls, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    words = ["quickstart", "devices.hosts=2", "--output", "run"]
    assert train.main(words) == arguments.USER_ERROR
    assert "trains on one host only" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_dry_run_shows_stages_and_rates_and_writes_nothing(
    digits_folder, capsys, tmp_path, tmp_path_factory, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    photos = tmp_path_factory.mktemp("photos")
    for folder in digits_folder.iterdir():
        (photos / folder.name).symlink_to(folder)
    (photos / "loose.txt").write_text("notes")
    words = ["resnet50", f"data.path={photos}", "data.image_size=32", "model.weights=none"]
    words += ["model.backbone=small", "model.last_stage=stage3"]
    words += ["phases.1.unfreeze=stage3", "phases.1.layer_decay=0.5", "--dry-run"]
    assert train.main(words) == 0
    shown = capsys.readouterr().out
    parts = (
        "stage3",
        "300 files of 10 classes",
        "1 file that is no image ignored",
        "5.0e-04",
        "1.0e-03",
        "solved",
        "nothing was written",
    )
    for part in parts:
        assert part in shown
    assert not list(tmp_path.iterdir())


def test_pretrain_writes_weights_and_record_where_told(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["letters_vgg16", "backbone=small", "last_stage=stage2", "num_letters=64"]
    words += ["batch_size=32", "phase.epochs=1", "phase.warmup_epochs=0", "--output", "weights"]
    assert pretrain.main(words) == 0
    record = json.loads((tmp_path / "weights" / "small_stage2.json").read_text())
    assert record["steps"] == 2
    assert record["command"].startswith("python -m pipelines.pretrain letters_vgg16 backbone=")
    assert "Weights: weights/small_stage2.npz" in capsys.readouterr().out


def test_probe_prints_a_row_for_each_kind_of_features(digits_folder, capsys):
    words = ["resnet50", f"data.path={digits_folder}", "data.image_size=32", "model.weights=none"]
    words += ["model.backbone=small", "model.last_stage=stage2"]
    assert probe.main([*words, "--labels", "60", "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    for part in ("random weights", "raw pixels", "60 labels"):
        assert part in shown


def test_resume_of_nothing_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(["quickstart", "--resume"]) == arguments.USER_ERROR
    assert "no run called 'quickstart'" in capsys.readouterr().err


def test_door_lists_its_verbs_and_refuses_others(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["keras-transfer"])
    assert cli.main() == 0
    assert "predict" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["keras-transfer", "fly"])
    assert cli.main() == 2


def test_a_backend_that_is_not_installed_is_an_error_that_says_what_to_install():
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "from pipelines import train\n"
        "sys.exit(train.main(['quickstart', '--dry-run']))"
    )
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2, done.stderr
    assert 'pip install "keras_transfer[jax]"' in done.stderr


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("starlette.routing", "serve"),
        ("prometheus_client", "serve"),
        ("ai_edge_litert", "formats"),
        ("pyarrow", "parquet"),
        ("ray", "scale"),
        ("jax", "jax"),
    ],
)
def test_a_missing_optional_package_is_an_error_that_names_the_extra(module, extra, capsys):
    def verb():
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    assert arguments.run_verb(verb) == 2
    assert f'pip install "keras_transfer[{extra}]"' in capsys.readouterr().err


def test_other_missing_modules_are_faults_of_the_program():
    def verb():
        raise ModuleNotFoundError("No module named 'keras_transfer.nothing'", name="keras_transfer")

    with pytest.raises(ModuleNotFoundError):
        arguments.run_verb(verb)
