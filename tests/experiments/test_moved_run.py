"""A run that was moved or copied without its images, or changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_transfer as kt
from keras_transfer.config import load_spec, override
from keras_transfer.errors import DataError, ExportError, RunError
from keras_transfer.experiments.evaluation import evaluate_run
from keras_transfer.experiments.run import run_transfer
from keras_transfer.export import conversion
from keras_transfer.export.conversion import read_split
from keras_transfer.inference import prediction
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.serving.settings import Settings
from keras_transfer.serving.versions import Version
from keras_transfer.specs import CacheSpec, DataSpec, ModelSpec, PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run
from pipelines import evaluate as evaluate_verb
from pipelines import export as export_verb
from pipelines.arguments import USER_ERROR


class Listening(SilentReporter):
    """Remembers the sentences."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def info(self, text: str) -> None:
        self.heard.append(text)


class Interrupting(SilentReporter):
    """Stops a run where its first phase begins."""

    def training_progress(self, *_: object) -> None:
        raise KeyboardInterrupt


def make_spec(folder: Path) -> RunSpec:
    return RunSpec(
        name="digits",
        data=DataSpec(path=str(folder), image_size=16, resize="squash"),
        model=ModelSpec(backbone="small", last_stage="stage1", weights="none"),
        phases=(PhaseSpec(name="frozen", epochs=1, learning_rate=1e-2),),
        training=TrainingSpec(refit=False),
        cache=CacheSpec(precision="float32"),
    )


@pytest.fixture(scope="module")
def photos(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, in a folder that the tests may change."""
    folder = tmp_path_factory.mktemp("source") / "photos"
    for name in ("digit_3", "digit_7"):
        shutil.copytree(digits_folder / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run whose images are gone from where they were."""
    place = tmp_path_factory.mktemp("trained") / "photos"
    shutil.copytree(photos, place)
    folder = start_run(make_spec(place), output=tmp_path_factory.mktemp("runs") / "run")
    run_transfer(load_spec(folder.path), folder, reporter=SilentReporter())
    shutil.rmtree(place)
    return folder


def recorded(run: RunFolder) -> float:
    accuracy: float = run.read_json("metrics.json")["test"]["accuracy"]
    return accuracy


def keep(place: Path) -> None:
    """Nothing is changed."""


def rename_classes(place: Path) -> None:
    for folder in list(place.iterdir()):
        folder.rename(place / f"class of {folder.name}")


def add_a_class(place: Path) -> None:
    (place / "digit_9").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(place / "digit_9" / "new.png")


def remove_training_images(place: Path, run: RunFolder) -> None:
    for entry in run.read_json("splits.json")["rows"]["train"]:
        (place / entry["path"]).unlink()


@pytest.mark.parametrize("change", [keep, rename_classes, add_a_class])
def test_evaluate_finds_the_test_images_at_a_new_place(
    change: Callable[[Path], None], run: RunFolder, photos: Path, tmp_path: Path, monkeypatch
):
    shutil.copytree(photos, tmp_path / "moved")
    change(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "figures.json"
    words = [str(run.path), "data.path=moved", "--output", str(output)]
    assert evaluate_verb.main(words) == 0
    assert json.loads(output.read_text())["accuracy"] == recorded(run)


def test_evaluate_reads_only_the_test_images(run: RunFolder, photos: Path, tmp_path: Path):
    shutil.copytree(photos, tmp_path / "moved")
    remove_training_images(tmp_path / "moved", run)
    evaluation = kt.load_run(run.path).evaluate(
        moved_to=tmp_path / "moved", reporter=SilentReporter()
    )
    assert evaluation.accuracy == recorded(run)


@pytest.mark.parametrize("verb", [evaluate_verb, export_verb])
def test_what_is_missing_at_a_given_place_is_named(
    verb, run: RunFolder, photos: Path, tmp_path: Path, capsys
):
    shutil.copytree(photos, tmp_path / "moved")
    first, second, *_ = run.read_json("splits.json")["rows"]["test"]
    (tmp_path / "moved" / first["path"]).unlink()
    (tmp_path / "moved" / second["path"]).write_bytes(b"other")
    assert verb.main([str(run.path), f"data.path={tmp_path / 'moved'}"]) == USER_ERROR
    said = capsys.readouterr().err
    assert f"1 missing: {first['path']}" in said
    assert f"1 with other content: {second['path']}" in said


@pytest.mark.parametrize("verb", [evaluate_verb, export_verb])
def test_other_fields_of_a_finished_run_are_refused(verb, run: RunFolder, capsys):
    assert verb.main([str(run.path), "data.image_size=8"]) == USER_ERROR
    assert "data.image_size=8" in capsys.readouterr().err


def test_images_of_the_training_are_left_out_and_counted(
    run: RunFolder, photos: Path, tmp_path: Path
):
    rows = run.read_json("splits.json")["rows"]
    place = tmp_path / "mixed"
    for name in ("train", "val", "test"):
        for number, entry in enumerate([*rows[name][:2], *rows[name][-2:]]):
            target = place / entry["label"] / f"{name}-{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / entry["path"], target)
    listening = Listening()
    own = evaluate_run(run.path, str(place), reporter=listening)
    assert own.num_examples == 4
    assert any(
        text.startswith("8 images were used in the run's training") for text in listening.heard
    )
    everything = evaluate_run(
        run.path, str(place), include_training=True, reporter=SilentReporter()
    )
    assert everything.num_examples == 12


def test_images_of_one_class_are_evaluated(run: RunFolder, photos: Path, tmp_path: Path):
    first, *others = run.read_json("splits.json")["rows"]["test"]
    same = [first, *(entry for entry in others if entry["label"] == first["label"])]
    for entry in same:
        target = tmp_path / "one" / entry["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / entry["path"], target)
    found = evaluate_run(run.path, str(tmp_path / "one"), reporter=SilentReporter())
    assert found.num_examples == len(same)
    (tmp_path / "one" / first["label"]).rename(tmp_path / "one" / "strangers")
    with pytest.raises(DataError, match="not among the model's 2 classes") as failure:
        evaluate_run(run.path, str(tmp_path / "one"), reporter=SilentReporter())
    assert "strangers" in failure.value.received


def test_only_images_of_the_training_are_refused(run: RunFolder, photos: Path, tmp_path: Path):
    for entry in run.read_json("splits.json")["rows"]["train"]:
        target = tmp_path / "same" / entry["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / entry["path"], target)
    with pytest.raises(DataError, match=r"all \d+ images were used") as failure:
        evaluate_run(run.path, str(tmp_path / "same"), reporter=SilentReporter())
    assert "--include-training" in failure.value.fix


def test_resume_at_another_place_ends_like_an_undisturbed_run(
    run: RunFolder, photos: Path, tmp_path: Path
):
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(photos, first)
    spec = override(make_spec(first), {"run.keep_images": "none"})
    folder = start_run(spec, output=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run_transfer(load_spec(folder.path), folder, reporter=Interrupting())
    first.rename(second)
    rename_classes(second)
    add_a_class(second)
    moved = override(load_spec(folder.path), {"data.path": str(second)})
    resumed = start_run(moved, output=folder.path, resume=True)
    run_transfer(moved, resumed, reporter=SilentReporter())
    assert resumed.read_json("splits.json")["hash"] == run.read_json("splits.json")["hash"]
    assert resumed.read_json("metrics.json")["test"] == run.read_json("metrics.json")["test"]
    assert not (resumed.path / "images").exists()


def test_refused_resume_keeps_the_run(photos: Path, tmp_path: Path):
    shutil.copytree(photos, tmp_path / "photos")
    folder = start_run(make_spec(tmp_path / "photos"), output=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run_transfer(load_spec(folder.path), folder, reporter=Interrupting())
    shutil.rmtree(tmp_path / "photos")
    resumed = start_run(load_spec(folder.path), output=folder.path, resume=True)
    with pytest.raises(DataError, match="no longer at data"):
        run_transfer(load_spec(folder.path), resumed, reporter=SilentReporter())
    assert (folder.path / "splits.json").is_file()
    assert folder.spec_file.is_file()


@pytest.fixture
def copy(run: RunFolder, tmp_path: Path) -> Path:
    """The run on another machine, without its data."""
    return Path(shutil.copytree(run.path, tmp_path / "copied"))


def test_copied_run_is_evaluated_on_the_images_that_it_keeps(copy: Path, run: RunFolder):
    listening = Listening()
    assert evaluate_run(copy, None, reporter=listening).accuracy == recorded(run)
    assert any("images that the run keeps are used" in text for text in listening.heard)


def test_copied_run_is_exported_without_its_data(copy: Path, capsys):
    # As many test images as a long split leaves.
    next((copy / "images" / "test").iterdir()).unlink()
    assert export_verb.main([str(copy)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "images that the run keeps are used" in said
    before, after = (json.loads((copy / f"export/{n}/card.json").read_text()) for n in (1, 2))
    assert (before.pop("version"), after.pop("version")) == (1, 2)
    assert before == after


def test_ranges_and_comparisons_of_formats_need_no_data(copy: Path):
    loaded = prediction.load_run(copy)
    for split in ("test", "train"):
        entries = loaded.folder.read_json("splits.json")["rows"][split]
        images = read_split(loaded, split, 64, reporter=SilentReporter())
        assert images.digests == [entry["digest"] for entry in entries]


def test_layers_in_float32_are_chosen_on_kept_training_images(copy: Path, tmp_path: Path):
    loaded, listening = prediction.load_run(copy), Listening()
    train = read_split(loaded, "train", 64, reporter=SilentReporter())
    conversion._write_validation(loaded, train, tmp_path / "chosen.npz", listening)
    with np.load(tmp_path / "chosen.npz") as chosen:
        np.testing.assert_array_equal(chosen["pixels"], train.pixels)
        np.testing.assert_array_equal(chosen["values"], train.values)
    words = f"{len(train.values)} training images choose the layers in float32"
    assert words in listening.heard[-1]


def without_images(copy: Path) -> None:
    shutil.rmtree(copy / "images")


def with_other_images(copy: Path) -> None:
    for file in (copy / "images" / "test").iterdir():
        file.write_bytes(b"other")


@pytest.mark.parametrize("change", [without_images, with_other_images])
def test_evaluating_without_images_is_refused(change: Callable[[Path], None], copy: Path):
    change(copy)
    with pytest.raises(DataError, match="images of the run are") as failure:
        evaluate_run(copy, None, reporter=SilentReporter())
    assert "data.path=" in failure.value.fix


def other_weights(copy: Path) -> None:
    model = keras.models.load_model(copy / "model.keras", compile=False)
    logits = model.get_layer("logits")
    logits.set_weights([weights[..., ::-1] for weights in logits.get_weights()])
    model.save(copy / "model.keras")


def cut_model(copy: Path) -> None:
    (copy / "model.keras").write_bytes((copy / "model.keras").read_bytes()[:-1000])


def edit_task(copy: Path) -> None:
    (copy / "task.json").write_text((copy / "task.json").read_text() + " ")


def edit_spec(copy: Path) -> None:
    text = (copy / "spec.json").read_text()
    (copy / "spec.json").write_text(text.replace('"squash"', '"crop"'))


@pytest.mark.parametrize("change", [other_weights, cut_model, edit_task, edit_spec])
def test_changed_run_is_not_loaded(change: Callable[[Path], None], copy: Path, photos: Path):
    change(copy)
    name = {edit_task: "task.json", edit_spec: "spec.json"}.get(change, "model.keras")
    for use in (
        lambda: prediction.load_run(copy),
        lambda: prediction.open_target(copy),
        lambda: evaluate_run(copy, str(photos), reporter=SilentReporter()),
    ):
        with pytest.raises(RunError) as failure:
            use()
        assert name in str(failure.value)


def test_cut_model_without_checksums_is_not_called_missing(copy: Path):
    (copy / "checksums.json").unlink()
    cut_model(copy)
    with pytest.raises(RunError, match="cannot be loaded") as failure:
        prediction.load_run(copy)
    assert "damaged or incomplete" in failure.value.received


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    [
        "saved_model.pb",
        "contract.json",
        "variables/variables.data-00000-of-00001",
        "fingerprint.pb",
    ],
)
def test_changed_export_is_neither_opened_nor_served(name: str, copy: Path):
    flip(copy / "export" / "1" / name)
    with pytest.raises(ExportError, match="not those that were verified") as failure:
        prediction.open_target(copy / "export" / "1")
    assert name in failure.value.received
    with pytest.raises(ExportError, match="not those that were verified"):
        Version(1, copy / "export" / "1", Settings(folder=copy / "export"), on_batch=print)
