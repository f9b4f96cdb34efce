"""Studies hold out what they should, compute frozen layers once, and go on where they stopped."""

import csv
import gc
import json

import numpy as np
import pytest

from keras_transfer.config import override, spec_to_dict
from keras_transfer.data.splits import make_folds, make_splits
from keras_transfer.errors import DataError, RunError, SpecError
from keras_transfer.evaluation.intervals import wilson
from keras_transfer.experiments.run import evaluate_test, run_transfer
from keras_transfer.experiments.session import open_session
from keras_transfer.experiments.study.run import run_study
from keras_transfer.experiments.study.study import Study
from keras_transfer.models.classifier import build_classifier
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import (
    CacheSpec,
    DataSpec,
    ModelSpec,
    PhaseSpec,
    RunSpec,
    TrainingSpec,
    ViewSpec,
)
from keras_transfer.storage.run_start import start_run
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.fitting import fit_phases
from pipelines import train
from pipelines.arguments import USER_ERROR

NUM_VIEWS, NUM_IMAGES = 2, 300
HEAD = PhaseSpec(name="frozen", epochs=2, learning_rate=1e-2)
SHORT = {"phases.0.epochs": 1}


class Listener(SilentReporter):
    """Remembers what is said, and may stop a study after some trials."""

    def __init__(self, *, stop_after: int | None = None):
        self.said: list[str] = []
        self.watched: list[str] = []
        self.stop_after = stop_after

    def info(self, text: str) -> None:
        self.said.append(text)
        if self.stop_after is not None and text.startswith(f"Trial {self.stop_after} of"):
            raise KeyboardInterrupt

    def training_progress(self, title, epochs, steps_per_epoch):
        self.watched.append(title)
        return super().training_progress(title, epochs, steps_per_epoch)


def make_spec(folder, cache, **changes) -> RunSpec:
    spec = RunSpec(
        name="small",
        data=DataSpec(path=str(folder), image_size=32, resize="squash"),
        views=ViewSpec(count=NUM_VIEWS),
        model=ModelSpec(backbone="small", last_stage="stage1", weights="none"),
        phases=(HEAD,),
        training=TrainingSpec(rollback=False, refit=False, label_smoothing=0.0),
        # What 'auto' measures may differ from run to run, and with it the last bits.
        cache=CacheSpec(folder=str(cache), precision="float32"),
    )
    return override(spec, changes)


def study_of(spec: RunSpec, output, reporter=None, *, resume: bool = False) -> Study:
    run = start_run(spec, output=output, resume=resume)
    return run_study(spec, run, reporter=reporter or SilentReporter())


def read_json(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def validated(digits_folder, cache, tmp_path_factory) -> Study:
    spec = make_spec(digits_folder, cache, folds=3)
    return study_of(spec, tmp_path_factory.mktemp("studies") / "folds")


@pytest.fixture(scope="module")
def out_of_fold(validated) -> list[dict[str, str]]:
    with (validated.run.path / "out_of_fold.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_out_of_fold_predictions_cover_each_image_outside_the_test_split_once(
    validated, out_of_fold
):
    rows = read_json(validated.run.path / "splits.json")["rows"]
    everything = {entry["path"] for part in rows.values() for entry in part}
    apart = {entry["path"] for entry in rows["test"]}
    paths = [row["path"] for row in out_of_fold]
    assert len(everything) == NUM_IMAGES
    assert paths == sorted(everything - apart)
    assert {row["fold"] for row in out_of_fold} == {"1", "2", "3"}
    columns = ["seed", "fold", "path", "label", "prediction", "confidence", "correct"]
    assert list(out_of_fold[0])[:7] == columns
    assert list(out_of_fold[0])[7:] == [f"probability_digit_{number}" for number in range(10)]


def test_study_json_agrees_with_the_predictions(validated, out_of_fold):
    content = read_json(validated.run.study_file)
    right = [row["label"] == row["prediction"] for row in out_of_fold]
    whole = content["summary"]["out_of_fold"]
    assert whole["score"] == pytest.approx(np.mean(right))
    assert whole["interval"] == pytest.approx(wilson(sum(right), len(right)))
    by_fold = [
        np.mean([r for r, row in zip(right, out_of_fold, strict=True) if row["fold"] == fold])
        for fold in "123"
    ]
    assert [trial["score"] for trial in content["trials"]] == pytest.approx(by_fold)
    over = content["summary"]["over_groups"]
    assert [over["minimum"], over["median"], over["maximum"]] == pytest.approx(sorted(by_fold))
    assert over["standard_deviation"] == pytest.approx(np.std(by_fold, ddof=1))
    for trial in content["trials"]:
        assert [phase["name"] for phase in trial["phases"]] == ["frozen"]
        assert trial["phases"][0]["seconds"] <= trial["seconds"]


def test_frozen_layers_see_every_view_once_in_the_whole_study(validated):
    records, spec = validated.records, validated.spec
    apart = make_splits(records, spec.data, seed=spec.seed).test
    folds = make_folds(records, spec.data, apart, num_folds=3, seed=spec.seed)
    trained_on = {row for splits in folds for row in splits.train.tolist()}
    assert len(trained_on) > NUM_IMAGES - len(apart) - 30
    # Those set apart are neither trained on nor judged.
    num_pairs = len(trained_on) * NUM_VIEWS + NUM_IMAGES - len(apart) - len(trained_on)
    computed = [trial.views_computed for trial in validated.trials]
    assert computed == [num_pairs, 0, 0]
    assert [trial.views_found for trial in validated.trials] == [0, num_pairs, num_pairs]


def test_study_folder_holds_what_it_should_and_nothing_half_done(validated):
    names = {path.name for path in validated.run.path.iterdir()}
    assert names == {
        "spec.json",
        "environment.json",
        "splits.json",
        "class_names.json",
        "out_of_fold.csv",
        "study.json",
    }


def test_a_stopped_study_goes_on_without_repeating_trials(validated, tmp_path):
    spec, output = validated.spec, tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        study_of(spec, output, Listener(stop_after=1))
    assert not (output / "study.json").exists()
    listener = Listener()
    study = study_of(spec, output, listener, resume=True)
    assert listener.watched == ["fold 2 of 3: frozen", "fold 3 of 3: frozen"]
    assert len([text for text in listener.said if text.startswith("Trial ")]) == 3
    # What the first study stored serves the second, which ends alike.
    assert sum(trial.views_computed for trial in study.trials) == 0
    ours, theirs = (done.run.path / "out_of_fold.csv" for done in (study, validated))
    assert ours.read_bytes() == theirs.read_bytes()
    with pytest.raises(RunError, match="is finished"):
        start_run(spec, output=output, resume=True)
    with pytest.raises(RunError, match="already has a run"):
        start_run(spec, output=output)


@pytest.mark.slow
def test_a_repeat_is_the_run_with_that_seed(digits_folder, cache, tmp_path):
    spec = make_spec(digits_folder, cache, seeds=2, seed=4)
    study = study_of(spec, tmp_path / "seeds")
    content = read_json(study.run.study_file)
    assert [trial["seed"] for trial in content["trials"]] == [4, 5]
    accuracies = [trial["score"] for trial in content["trials"]]
    assert content["summary"]["over_groups"]["mean"] == pytest.approx(np.mean(accuracies))

    single = override(spec, {"seeds": 1, "seed": 5})
    with open_session(single, reporter=SilentReporter()) as session:
        classifier, phase_inputs = session.build_classifier(), session.phase_inputs()
        fit_phases(classifier, phase_inputs, reporter=SilentReporter())
        probabilities = phase_inputs.predict(classifier, session.data.splits.test)
    assert (
        evaluate_test(session.task, session.data, probabilities, seed=5).accuracy == accuracies[1]
    )


class Collector(Listener):
    """Counts, after each trial, what of all trials is still in memory."""

    def __init__(self):
        super().__init__()
        self.alive: list[int] = []

    def info(self, text: str) -> None:
        super().info(text)
        if text.startswith("Trial"):
            gc.collect()
            kinds = ("FuncGraph", "Functional", "Features", "Adam")
            self.alive.append(sum(type(item).__name__ in kinds for item in gc.get_objects()))


@pytest.mark.slow
def test_learning_curve_halves_down_to_a_image_a_class_on_shared_views(
    cache, digits_folder, tmp_path
):
    spec = make_spec(digits_folder, cache, halvings=5, seeds=2, **SHORT)
    model = build_classifier(spec.model, image_size=32, task=SingleLabel(("a", "b")), seed=0)
    model.save(tmp_path / "model.keras")
    changes = {"data.train_size": 21, "model.weights": str(tmp_path / "model.keras")}
    collector = Collector()
    study = study_of(override(spec, changes), tmp_path / "curve", collector)
    assert [trial.train_size for trial in study.trials] == [21, 10, 21, 10]
    assert any("ends at 10 training images" in text for text in collector.said)
    assert (study.run.path / "learning_curve.png").stat().st_size > 1000
    assert [trial.views_computed for trial in study.trials[1:]] == [0, 0, 0]
    groups = read_json(study.run.study_file)["summary"]["groups"]
    assert [group["train_size"] for group in groups] == [21, 10]
    for group, (one, other) in zip(groups, ((0, 2), (1, 3)), strict=True):
        accuracies = [study.trials[number].score for number in (one, other)]
        assert group["median"] == group["score"] == pytest.approx(np.mean(accuracies))
        assert [group["minimum"], group["maximum"]] == sorted(accuracies)
        assert group["interval"] is None
    assert collector.alive[3] == collector.alive[1], "something of every trial is kept"


def test_a_study_works_without_the_cache(digits_folder, cache, tmp_path):
    spec = make_spec(digits_folder, cache, folds=2, **{"cache.mode": "off"}, **SHORT)
    spec = override(spec, {"data.train_size": 40})
    study = study_of(spec, tmp_path / "off")
    assert [trial.train_size for trial in study.trials] == [40, 40]
    assert sum(trial.views_computed + trial.views_found for trial in study.trials) == 0


def test_too_many_folds_are_refused_and_leave_no_folder(digits_folder, cache, tmp_path):
    spec = make_spec(digits_folder, cache, folds=30)
    with pytest.raises(DataError, match="too few files for 30 folds"):
        study_of(spec, tmp_path / "many")
    assert not (tmp_path / "many").exists()


@pytest.mark.parametrize("name", ["folds", "seeds", "halvings"])
def test_run_transfer_names_what_to_call_for_a_study(name, digits_folder, cache, tmp_path):
    spec = make_spec(digits_folder, cache, **{name: 2})
    run = start_run(spec, output=tmp_path / "run")
    with pytest.raises(SpecError, match=f"{name}=2") as raised:
        run_transfer(spec, run, reporter=SilentReporter())
    assert "run_study" in raised.value.fix
    assert not run.path.exists()


@pytest.mark.slow
def test_train_verb_runs_a_study_into_a_folder_of_its_own(
    digits_folder, cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    spec = make_spec(digits_folder, cache, **SHORT)
    (tmp_path / "spec.json").write_text(json.dumps(spec_to_dict(spec)))
    words = ["spec.json", "seeds=2"]
    assert train.main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    folder = tmp_path / "saved_models" / "small-study"
    assert (folder / "run.log").is_file()
    for part in ("seed", "held out", "over 2 seeds minimum", "Frozen layers ran on"):
        assert part in shown
    assert train.main([*words, "--resume"]) == USER_ERROR
    assert "is finished" in capsys.readouterr().err
