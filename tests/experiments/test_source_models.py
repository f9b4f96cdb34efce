"""Model files and earlier runs as backbones of runs: spec, training, moving, resuming, ranking."""

import dataclasses
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from small_backbone import SMALL, save_small

import keras_transfer as kt
from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.config import load_spec, override, spec_to_dict
from keras_transfer.errors import RunError, SpecError, WeightsError
from keras_transfer.experiments.evaluation import evaluate_run
from keras_transfer.experiments.rank.candidates import build_candidates, make_candidates
from keras_transfer.experiments.run import run_transfer
from keras_transfer.experiments.session import open_session
from keras_transfer.inference.prediction import load_run, predict_files
from keras_transfer.models.classifier import Classifier, Rebuilder, build_classifier
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CandidateSpec, DataSpec, ModelSpec, PhaseSpec, RankSpec, RunSpec
from keras_transfer.storage.model_files import resolve_model
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run
from keras_transfer.tasks.single_label import SingleLabel

NAMES = ("cat", "dog")
SIZE = 16


class Listening(SilentReporter):
    """Remembers every message."""

    def __init__(self):
        self.messages: list[str] = []

    def info(self, message: str) -> None:
        self.messages.append(message)


def build(model: ModelSpec) -> Classifier:
    return build_classifier(model, image_size=SIZE, task=SingleLabel(NAMES), seed=0)


def save_network(file: Path, *, seed: int = 1) -> Path:
    return save_small(file, image_size=SIZE, seed=seed)


def save_run(folder: Path, **fields: str) -> Path:
    """A folder with the two files of a finished run that a later run reads."""
    spec = RunSpec(model=ModelSpec(**{"backbone": "small", "weights": "none", **fields}))
    RunFolder.create(folder).write_json("spec.json", spec_to_dict(spec))
    build(spec.model).save(folder / "model.keras")
    return folder


@pytest.fixture(scope="module")
def first(digits_folder, tmp_path_factory) -> tuple[RunFolder, Path, Listening]:
    """A run on a model file, that file, and what the run printed."""
    folder, reporter = tmp_path_factory.mktemp("runs"), Listening()
    file = save_network(folder / "net.keras")
    spec = RunSpec(
        data=DataSpec(path=str(digits_folder), image_size=SIZE, train_size=60),
        model=ModelSpec(backbone=str(file)),
        phases=(PhaseSpec(epochs=1, unfreeze="stage3"),),
    )
    run = start_run(spec, output=folder / "first")
    run_transfer(spec, run, reporter=reporter)
    return run, file, reporter


def test_run_on_a_file_records_it_and_works_without_it_in_another_place(first, digits_folder):
    run, file, reporter = first
    recorded = load_spec(run.path).model
    assert recorded.backbone.startswith(f"{file}#sha256=")
    assert recorded.weights == "file"
    assert any("Pixels are scaled by its own Rescaling" in text for text in reporter.messages)
    card = RunFolder(run.export_folder / "1").read_json("card.json")
    assert (card["backbone"], card["weights"], card["last_stage"]) == ("net.keras", "file", "")
    assert str(file.parent) not in (run.export_folder / "1" / "card.json").read_text()
    moved = Path(shutil.copytree(run.path, run.path.with_name("moved")))
    hidden = file.rename(file.with_suffix(".hidden"))
    image = next(digits_folder.glob("*/*.png"))
    assert len([*predict_files(load_run(moved), [image])]) == 1
    evaluation = evaluate_run(moved, None, reporter=SilentReporter())
    assert evaluation.to_dict()["accuracy"] == run.read_json("metrics.json")["test"]["accuracy"]
    hidden.rename(file)


def test_run_on_a_file_is_the_source_of_another(first):
    run, _, _ = first
    source = load_run(run.path).model
    model = resolve_model(ModelSpec(backbone=str(run.path)))
    assert model.backbone.startswith(f"{run.model_file}#sha256=")
    target = build(model)
    assert list(target.stages) == ["stage1", "stage2", "stage3", "head"]
    for layer in target.trunk.layers:
        before = source.get_layer(layer.name).get_weights()
        for ours, theirs in zip(layer.get_weights(), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["", "model.keras"])
def test_run_as_backbone_stands_for_its_backbone_stage_weights_and_scaling(tmp_path, name):
    folder = save_run(tmp_path / "source", last_stage="stage2", preprocess="torch")
    model = resolve_model(ModelSpec(backbone=str(folder / name)))
    assert (model.backbone, model.last_stage, model.preprocess) == ("small", "stage2", "torch")
    assert model.weights.startswith(f"{folder / 'model.keras'}#sha256=")
    source = keras.models.load_model(folder / "model.keras", compile=False)
    target = build(ModelSpec(backbone=str(folder / name)))
    features = keras.Model(source.input, source.get_layer("small2_pool").output)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype("float32")
    ours = keras.Model(target.model.input, target.trunk.output)(pixels)
    np.testing.assert_allclose(np.asarray(ours), np.asarray(features(pixels)), atol=1e-5)


def test_run_as_backbone_takes_no_other_weights(tmp_path):
    folder = save_run(tmp_path / "source")
    random = resolve_model(ModelSpec(backbone=str(folder), weights="none"))
    assert (random.backbone, random.weights) == ("small", "none")
    with pytest.raises(SpecError, match="has weights of its own"):
        resolve_model(ModelSpec(backbone=str(folder), weights="embedded"))
    lower = ModelSpec(backbone=str(folder), preprocess="caffe")
    with pytest.raises(WeightsError, match="preprocessing 'caffe'"):
        build(lower)


def test_weights_of_a_run_that_changed_are_noticed(tmp_path):
    model = resolve_model(ModelSpec(backbone=str(save_run(tmp_path / "source"))))
    (tmp_path / "source" / "model.keras").write_bytes(b"another")
    with pytest.raises(WeightsError, match="was changed since the spec was written"):
        build(model)


def test_folder_without_a_model_names_the_best_trial_of_a_search(tmp_path):
    save_run(tmp_path / "search" / "winner")
    with pytest.raises(SpecError, match="the best trial of this search") as caught:
        build(ModelSpec(backbone=str(tmp_path / "search")))
    assert str(tmp_path / "search" / "winner") in caught.value.fix


def test_rebuilder_keeps_the_trunk_of_one_file_and_one_scaling(tmp_path):
    file, rebuild = save_network(tmp_path / "net.keras"), Rebuilder()
    trunks = []
    for preprocess in ("", "", "tf"):
        model = ModelSpec(backbone=str(file), preprocess=preprocess)
        made = rebuild(model, image_size=SIZE, task=SingleLabel(NAMES), seed=0)
        trunks.append(made.trunk)
    assert trunks[0] is trunks[1]
    assert trunks[2].backbone.preprocessing == "tf"


def test_resuming_needs_the_file_as_it_was(tmp_path, monkeypatch, digits_folder):
    monkeypatch.chdir(tmp_path)
    file = save_network(Path("net.keras"))
    data = DataSpec(path=str(digits_folder), image_size=SIZE)
    spec = RunSpec(data=data, model=ModelSpec(backbone="net.keras"))
    start_run(spec, output="run")
    recorded = load_spec("run")
    assert recorded.model.backbone.startswith(f"{tmp_path / 'net.keras'}#sha256=")
    start_run(spec, output="run", resume=True)
    save_network(file, seed=2)
    with pytest.raises(RunError, match="started with another spec") as caught:
        start_run(spec, output="run", resume=True)
    assert "model.backbone" in caught.value.expected
    start_run(recorded, output="run", resume=True)
    for error, message in ((WeightsError, "was changed"), (SpecError, "no such file")):
        with open_session(recorded, reporter=SilentReporter()) as session:
            assert session.spec == recorded
            with pytest.raises(error, match=message):
                session.build_classifier()
        file.unlink(missing_ok=True)


def test_candidates_of_a_ranking_are_files_runs_and_names(tmp_path):
    one = save_network(tmp_path / "net.keras")
    (tmp_path / "other").mkdir()
    two = save_network(tmp_path / "other" / "net.keras")
    run = save_run(tmp_path / "source", last_stage="stage2")
    spec = override(RunSpec(), {"data.image_size": SIZE})
    ranking = RankSpec(
        backbones=(
            "small",
            str(run),
            str(one),
            str(two),
            CandidateSpec(backbone=str(one), last_stage="stage1", preprocess="none"),
            CandidateSpec(backbone=str(one), weights="none"),
        )
    )
    found = make_candidates(spec, ranking)
    assert [candidate.name for candidate in found] == [
        "small",
        "small to stage2",
        f"net.keras, {one}",
        f"net.keras, {two}",
        "net.keras to stage1",
        "net.keras, random",
    ]
    built = build_candidates(found[1:3], SingleLabel(NAMES), race=False)
    assert [one.cut.shape for one in built] == [(8,), (16,)]


def test_registered_backbone_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr("keras_transfer.backbones.registry.BACKBONES", dict(BACKBONES))
    own = dataclasses.replace(SMALL, name="own")
    kt.register(own)
    kt.register(own)
    assert "own" in kt.list_backbones()
    made = kt.build_model("own", num_classes=2, weights="none", image_size=SIZE)
    assert made.output_shape == (None, 2)
    with pytest.raises(SpecError, match="the name of another backbone"):
        kt.register(dataclasses.replace(SMALL, name="resnet50"))
    with pytest.raises(SpecError, match="a path"):
        kt.register(dataclasses.replace(SMALL, name="my/own"))
