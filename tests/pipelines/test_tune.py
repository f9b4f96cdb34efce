"""The verb that searches, as a user types it."""

import json
import subprocess
import sys
import threading

import pytest
from searches import SPACE, make_spec

from keras_transfer.config import spec_from_dict, spec_to_dict
from keras_transfer.errors import RunError
from keras_transfer.experiments.tune.space import check_space
from keras_transfer.experiments.tune.worker_roles import is_worker, wait_for_chief
from keras_transfer.specs import DEFAULT_SPACE
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run
from pipelines import tune
from pipelines.arguments import USER_ERROR


def test_help_lists_the_fields_without_importing_tensorflow():
    code = (
        "import sys, runpy; sys.argv = ['tune', '--help']\n"
        "try: runpy.run_module('pipelines.tune', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('keras', 'tensorflow', 'keras_tuner')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for part in ("search.time_budget=", "search.space=", "--against-plain", "--workers"):
        assert part in done.stdout


def test_presets_can_be_searched_as_they_are(capsys):
    for preset in ("quickstart", "resnet50"):
        assert tune.main([preset, "--print-spec"]) == 0
        check_space(spec_from_dict(json.loads(capsys.readouterr().out)))


def test_images_without_a_spec_are_searched_over_the_default_space(digits_folder, capsys):
    words = [str(digits_folder), "model.backbone=mobilenet_0.25", "--print-spec"]
    assert tune.main(words) == 0
    spec = spec_from_dict(json.loads(capsys.readouterr().out))
    assert spec.search.space == DEFAULT_SPACE
    check_space(spec)


def test_short_names_of_fields_are_taken_in_the_space_with_a_hint(capsys):
    words = ["quickstart", 'search.space={lr={low=1e-4,high=1e-2,sampling="log"}}', "trials=5"]
    assert tune.main([*words, "--print-spec"]) == 0
    shown = capsys.readouterr()
    search = json.loads(shown.out)["search"]
    assert list(search["space"]) == ["phases.1.learning_rate"]
    assert search["trials"] == 5
    assert "lr is taken for phases.1.learning_rate" in shown.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["quickstart", "search.space.lr=0.1"], "a table of values, low, high, step, sampling"),
        (["quickstart", "search.space.model.dropuot={values=[0.1]}"], "did you mean 'dropout'"),
        (["quickstart", "search.tuner=genetic"], "one of random, bayesian, grid, hyperband"),
        (["quickstart", "search.time_budget=soon"], "such as 20m"),
        (["quickstart", "seeds=3"], "search.refits"),
    ],
)
def test_wrong_words_leave_nothing_behind(words, part, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tune.main(words) == USER_ERROR
    assert part in capsys.readouterr().err
    assert not list((tmp_path / "saved_models").glob("*"))


@pytest.mark.slow
def test_a_search_is_told_trial_by_trial_and_closes_with_its_winner(
    digits_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    space = {"phases.0.learning_rate": SPACE["phases.0.learning_rate"]}
    spec = make_spec(digits_folder, tmp_path / "cache", **{"search.space": space})
    (tmp_path / "spec.json").write_text(json.dumps(spec_to_dict(spec)))
    assert tune.main(["spec.json"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "The search varies phases.0.learning_rate (0.001, 0.03)",
        "The score of a trial is its accuracy",
        "Trial 01: validation accuracy",
        "The best trial is",
        "Its gain was not compared with noise",
        "On the test split",
        "Recommendation:",
        "Next: python -m pipelines.",
    ):
        assert part in shown
    folder = tmp_path / "saved_models" / "small-search"
    assert (folder / "search.json").is_file()
    assert tune.main([str(folder), "--resume"]) == USER_ERROR
    assert "is finished" in capsys.readouterr().err


def test_a_worker_waits_for_its_chief_and_knows_its_search(
    small_search_spec, tmp_path, monkeypatch
):
    assert not is_worker()
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    assert not is_worker()
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "tuner0")
    assert is_worker()
    with pytest.raises(RunError, match="no --output"):
        wait_for_chief(small_search_spec, None)
    with pytest.raises(RunError, match="no search was started in"):
        wait_for_chief(small_search_spec, tmp_path / "s", seconds=0.1)

    def begin():
        run = start_run(small_search_spec, output=tmp_path / "s")
        run.write_json("splits.json", {})

    chief = threading.Timer(0.3, begin)
    chief.start()
    assert wait_for_chief(small_search_spec, tmp_path / "s") == RunFolder(tmp_path / "s")
    other = make_spec("elsewhere", tmp_path)
    with pytest.raises(RunError, match="another spec"):
        wait_for_chief(other, tmp_path / "s")


@pytest.fixture
def small_search_spec(tmp_path):
    return make_spec(tmp_path / "images", tmp_path / "cache")
