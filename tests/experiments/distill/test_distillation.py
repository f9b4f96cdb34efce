"""A distilled student is an ordinary run with a report, on real digits and a tiny trunk."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from distilling import save_teacher
from matplotlib.collections import PathCollection
from PIL import Image
from searches import read_json, search
from sklearn.datasets import load_digits

import keras_transfer as kt
from keras_transfer.config import override
from keras_transfer.errors import DataError, RunError, SpecError
from keras_transfer.experiments import contender_plot
from keras_transfer.experiments.contender_plot import draw_contenders
from keras_transfer.experiments.contenders import Figures
from keras_transfer.experiments.distill import distillation
from keras_transfer.experiments.distill.comparison import _gain
from keras_transfer.experiments.distill.generations import Generations
from keras_transfer.experiments.distill.settings import distillation_spec, spec_alone
from keras_transfer.experiments.distill.teachers import store_teacher
from keras_transfer.experiments.run import run_transfer
from keras_transfer.experiments.session import open_session
from keras_transfer.experiments.speed import Speed
from keras_transfer.methods.distillation.teacher import load_teacher
from keras_transfer.methods.registry import make_methods
from keras_transfer.models.activations import activate
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import (
    CacheSpec,
    DataSpec,
    DistillSpec,
    ModelSpec,
    PhaseSpec,
    RunSpec,
    ViewSpec,
)
from keras_transfer.tasks.single_label import SingleLabel
from pipelines import distill as verb
from pipelines.arguments import USER_ERROR

NAMES = tuple(f"digit_{number}" for number in range(10))
SILENT = SilentReporter()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "run", NAMES)


@pytest.fixture(scope="module")
def pool(tmp_path_factory, digits_folder):
    """Digits without labels: new ones, one twice, and copies of a third of the labelled ones."""
    folder = tmp_path_factory.mktemp("pool")
    scans = load_digits()
    for row in [*range(300, 400), 300]:
        pixels = np.uint8(np.round(scans.images[row] * 255 / 16))
        Image.fromarray(pixels).save(folder / f"{row}-{len(list(folder.iterdir()))}.png")
    for file in sorted(digits_folder.rglob("*.png"))[::3]:
        (folder / file.parent.name).mkdir(exist_ok=True)
        (folder / file.parent.name / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def spec(digits_folder, tmp_path_factory):
    return RunSpec(
        name="digits",
        data=DataSpec(path=str(digits_folder), image_size=32, resize="squash", train_size=30),
        views=ViewSpec(count=2, horizontal_flip=False),
        model=ModelSpec(backbone="small", weights="none"),
        phases=(PhaseSpec(name="frozen", method="exact"),),
        cache=CacheSpec(folder=str(tmp_path_factory.mktemp("cache")), precision="float32"),
    )


def test_images_without_labels_follow_the_others_and_evaluated_copies_are_left_out(
    spec, teacher, pool
):
    taught = distillation_spec(spec, str(teacher), DistillSpec(unlabelled=str(pool)))
    with open_session(taught, reporter=SILENT) as session:
        data = session.data
        evaluated = np.concatenate([data.splits.val, data.splits.test])
        digests = np.array(data.source.digests)
        num_labelled = len(data.records.items)
        copied = {item.digest for item in data.records.items[::3]}
        assert len(data.unlabelled) == 100 + len(copied - set(digests[evaluated]))
        assert data.unlabelled[0] == num_labelled
        assert not set(digests[data.unlabelled]) & set(digests[evaluated])
        first = data.unlabelled_items[0]
        assert first.digest == digests[num_labelled]
        assert np.asarray(data.examples.pixels[num_labelled]).shape == (32, 32, 3)
        assert not data.examples.targets.strata[data.unlabelled].any()
        larger = session.source_of(48)
        assert larger.digests == data.source.digests
        assert larger.examples.pixels.shape == (len(digests), 48, 48, 3)
        assert session.source_of(48) is larger


def test_an_empty_folder_and_one_that_nothing_uses_are_refused(spec, teacher, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    settings = DistillSpec(unlabelled=str(tmp_path))
    taught = distillation_spec(spec, str(teacher), settings)
    empty = pytest.raises(DataError, match=r"data\.unlabelled has no images")
    with open_session(taught, reporter=SILENT) as session, empty:
        _ = session.data
    with pytest.raises(SpecError, match="no phase uses the images without labels"):
        make_methods(override(spec, {"data.unlabelled": str(tmp_path)}))


def test_every_phase_of_the_student_distils_and_none_of_it_alone(spec, teacher):
    two = dataclasses.replace(spec, phases=RunSpec().phases)
    settings = DistillSpec(kind="similarity", temperature=4.0, unlabelled="images")
    taught = distillation_spec(two, str(teacher), settings)
    kinds = [phase.method_options["kind"] for phase in taught.phases]
    assert kinds == ["logits", "similarity"]  # Features of a frozen trunk do not train.
    assert {phase.method_options["temperature"] for phase in taught.phases} == {4.0}
    assert "hard_weight" not in taught.phases[0].method_options
    alone = spec_alone(taught)
    assert [phase.method for phase in alone.phases] == ["exact", "supervised"]
    assert alone == two


def test_the_error_of_a_gain_has_the_images_and_the_seeds():
    task = SingleLabel(("a", "b"))
    values = np.array([0, 0, 1, 1])
    right, wrong = np.eye(2)[values], np.eye(2)[1 - values]
    half = np.where(np.arange(4)[:, None] < 2, right, wrong)
    assert _gain(task, values, [half, half], [right, right]) == pytest.approx((0.5, 0.25))
    gain, error = _gain(task, values, [half, half], [right, half])
    by_image = np.hypot(0.25, 0.25) / 4 * np.sqrt(2)
    assert gain == pytest.approx(0.25)
    assert error > by_image


@pytest.mark.slow
def test_a_student_is_a_run_with_a_report_and_an_interrupted_comparison_is_resumed(
    spec, teacher, pool, tmp_path, monkeypatch
):
    folder = tmp_path / "student"

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(distillation, "compare", killed)
        with pytest.raises(KeyboardInterrupt):
            kt.distill(teacher, spec, unlabelled=str(pool), seeds=2, output=folder, reporter=SILENT)
    assert not (folder / "distillation.json").exists()
    run = kt.distill(
        teacher,
        spec,
        unlabelled=str(pool),
        seeds=2,
        output=folder,
        resume=True,
        reporter=SILENT,
    )
    report = read_json(folder / "distillation.json")
    taught, distilled, alone = report["contenders"]
    assert distilled["scores"][0] == pytest.approx(run.evaluation.accuracy)
    assert len(distilled["scores"]) == 2
    assert taught["score"] > max(distilled["score"], alone["score"])
    assert report["gain"] == pytest.approx(distilled["score"] - alone["score"])
    assert taught["agreement"] == 1
    assert distilled["num_bytes"] == (folder / "model.keras").stat().st_size
    assert report["sentence"] in (folder / "distillation.md").read_text()
    assert (folder / "distillation.png").stat().st_size > 5000
    assert not (folder / "checkpoint").exists()
    cache = read_json(folder / "cache.json")
    assert cache["teacher"]["views_computed"] > 200
    (folder / "distillation.json").unlink()
    Image.new("RGB", (8, 8)).save(pool / "new.png")
    with pytest.raises(DataError, match="images without labels have changed"):
        kt.distill(teacher, spec, unlabelled=str(pool), output=folder, resume=True, reporter=SILENT)
    (pool / "new.png").unlink()


@pytest.mark.slow
def test_generations_are_runs_that_learn_from_each_other_and_a_killed_one_is_resumed(
    spec, teacher, tmp_path, monkeypatch
):
    folder, trained = tmp_path / "student", []
    first = folder / "generations" / "1"
    arguments = {"generations": 2, "seeds": 1, "output": folder, "reporter": SILENT}

    def killed(spec, run, **given):
        trained.append(run.path)
        if len(trained) == 2:
            raise KeyboardInterrupt
        run_transfer(spec, run, **given)

    monkeypatch.setattr(distillation, "run_transfer", killed)
    with pytest.raises(KeyboardInterrupt):
        kt.distill(teacher, spec, **arguments)
    with pytest.raises(RunError, match="already has a run"):
        kt.distill(teacher, spec, **arguments)
    last = kt.distill(teacher, spec, **arguments, resume=True)
    assert trained == [first, folder, folder]
    for run, taught_by in ((first, teacher), (folder, first)):
        path = read_json(run / "spec.json")["phases"][0]["method_options"]["teacher"]
        assert path.startswith(f"{taught_by / 'model.keras'}#sha256=")
    report = read_json(folder / "distillation.json")
    names = [one["name"] for one in report["contenders"]]
    assert names == ["teacher", "generation 1", "generation 2", "alone"]
    _, one, two, _ = report["contenders"]
    assert one["scores"] == pytest.approx([kt.load_run(first).evaluation.accuracy])
    assert two["scores"] == pytest.approx([last.evaluation.accuracy])
    assert all(f"| {name} |" in (folder / "distillation.md").read_text() for name in names)


def test_a_model_in_memory_is_stored_once_as_a_teacher(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_HOME", str(tmp_path))
    model = keras.models.load_model(teacher / "model.keras")
    file = store_teacher(model)
    assert store_teacher(keras.models.load_model(teacher / "model.keras")) == file
    assert [one.name for one in file.parent.iterdir()] == [file.name]
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("float32")
    found = load_teacher(str(file), 32)
    features = np.array(keras.Model(found.cut.model.input, found.cut.tensor)(pixels))
    expected = np.array(keras.Model(model.input, model.output)(pixels))
    outputs = activate(found.logits(features), found.activation)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    nested = keras.Model(model.input, model(model.input))
    assert store_teacher(nested) != file
    with pytest.raises(SpecError, match="no graph of layers"):
        store_teacher(keras.Sequential([keras.layers.Dense(3)]))


def test_a_teacher_in_memory_and_one_in_a_file_are_taken(spec, teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_HOME", str(tmp_path))
    taken = []

    def stop(generations, *_, **__):
        taken.append(generations.spec.phases[0].method_options["teacher"])
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_transfer.api.run_distillation", stop)
    model = keras.models.load_model(teacher / "model.keras")
    file = store_teacher(model)
    for number, (given, expected) in enumerate(
        ((model, f"{file}"), ([teacher, model], f"{teacher},{file}"))
    ):
        with pytest.raises(KeyboardInterrupt):
            kt.distill(given, spec, output=tmp_path / f"run-{number}", reporter=SILENT)
        assert taken[-1] == expected


def test_generations_choose_a_folder_as_runs_do_and_leave_none_of_a_refused_one(
    spec, teacher, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    taught = distillation_spec(spec, str(teacher), DistillSpec())
    assert Generations.of(taught, 1, output=None, resume=False).folder is None
    new = Generations.of(taught, 2, output=None, resume=False)
    assert new.folder == Path("saved_models/digits")
    with pytest.raises(RunError, match=r"no such folder with a generations/1/spec\.json"):
        Generations.of(taught, 2, output=None, resume=True)
    wrong = distillation_spec(spec, "no/such/teacher", DistillSpec())
    with pytest.raises(SpecError, match="a teacher does not exist"):
        Generations.of(wrong, 2, output=None, resume=False).start(1)
    assert not new.folder.exists()
    assert new.start(1).path == Path("saved_models/digits/generations/1").absolute()
    again = Generations.of(taught, 2, output=None, resume=True)
    assert again.folder == new.folder
    assert again.spec_of(1) == taught
    (phase,) = again.spec_of(2).phases
    assert phase.method_options["teacher"] == str(tmp_path / "saved_models/digits/generations/1")


def test_an_occupied_folder_is_refused_before_the_first_generation(spec, teacher, tmp_path):
    taught = distillation_spec(spec, str(teacher), DistillSpec())
    folder = tmp_path / "occupied"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="has files that do not belong to a run"):
        Generations.of(taught, 3, output=folder, resume=False).start(1)
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def figures_of(name, latency_ms, score):
    speed = Speed({1: latency_ms, 32: 9.0}, {1: latency_ms, 32: 9.0}, None)
    fixed = {"agreement": 1.0, "num_parameters": 1, "num_bytes": 1, "speed": speed}
    return Figures(name=name, score=score, interval=(0.4, 1.0), **fixed)


def test_every_contender_is_drawn(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(contender_plot, "save", lambda figure, _: figures.append(figure))
    names = ("teacher", "generation 1", "generation 2", "generation 3", "alone")
    dots = [figures_of(name, 1.0 + place, 0.5 + place / 10) for place, name in enumerate(names)]
    draw_contenders(
        dots, tmp_path / "x.png", monitor=SingleLabel(("a",)).monitor, title="", headline=""
    )
    (axes,) = figures[0].axes
    points = [one for one in axes.collections if isinstance(one, PathCollection)]
    assert [tuple(one.get_offsets()[0]) for one in points] == [
        (dot.latency_ms, dot.score) for dot in dots
    ]
    looks = {(str(one.get_facecolor()), one.get_paths()[0].vertices.tobytes()) for one in points}
    assert len(looks) == len(dots)


@pytest.mark.slow
def test_a_search_may_vary_the_temperature_and_the_weight_of_labels(spec, teacher, tmp_path):
    taught = distillation_spec(spec, str(teacher), DistillSpec())
    options = "phases.0.method_options"
    space = {
        f"{options}.temperature": {"values": [1.0, 4.0]},
        f"{options}.hard_weight": {"values": [0.1]},
    }
    changes = {"search.tuner": "grid", "search.refits": 0, "search.space": space}
    found = search(override(taught, changes), tmp_path / "search")
    assert [trial.values[f"{options}.temperature"] for trial in found.trials] == [1.0, 4.0]
    best = json.loads((found.run.path / "winner" / "spec.json").read_text())
    assert best["phases"][0]["method_options"]["temperature"] in (1.0, 4.0)


def test_the_verb_takes_fields_of_distillation_and_of_the_run(teacher, digits_folder, capsys):
    words = ["kind=decoupled", "seeds=5", "model.backbone=small", "phases.0.epochs=3"]
    spec, settings = verb.read_words(str(digits_folder), words)
    assert (settings.kind, settings.seeds, spec.seeds) == ("decoupled", 5, 1)
    assert (spec.model.backbone, spec.phases[0].epochs) == ("small", 3)
    words = ["kind=adversarial", "kind_options.target=labels", "kind_options.clean=0"]
    _, settings = verb.read_words(str(digits_folder), words)
    assert settings.kind_options == {"target": "labels", "clean": 0}
    with pytest.raises(SpecError, match="kind_options is given as a whole and by its entries"):
        verb.read_words(str(digits_folder), [*words, "kind_options={clean=1}"])
    for given, part in (
        (["no/such/teacher", str(digits_folder)], "a teacher does not exist"),
        ([str(teacher), str(digits_folder), "kind=logit"], "did you mean 'logits'?"),
        ([str(teacher), str(digits_folder), "temperature=0"], "temperature is out of range"),
    ):
        assert verb.main([*given, "model.backbone=small", "model.weights=none"]) == USER_ERROR
        assert part in capsys.readouterr().err
