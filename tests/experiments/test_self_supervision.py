"""Pretraining without labels: what trains, what is kept, resuming, and unusable images."""

import contextlib
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_transfer as kt
from keras_transfer.config import override
from keras_transfer.errors import DataError, SpecError
from keras_transfer.experiments.self_supervision import run_pretraining
from keras_transfer.models.classifier import build_classifier
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import ModelSpec, RunSpec
from keras_transfer.storage.checksums import sha256_of
from keras_transfer.storage.run_start import start_run
from keras_transfer.tasks.single_label import SingleLabel
from pipelines import pretrain, probe
from pipelines.benchmarks.transfer import measure_transfer, read_weights, tabulate

WORDS = ("model.backbone=small", "model.weights=none", "data.image_size=16", "phases.0.epochs=2")


@pytest.fixture(scope="module")
def photos(digits_folder, tmp_path_factory) -> Path:
    """100 distinct images at different depths, a copy of one, and a broken file."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    files = sorted(digits_folder.rglob("*.png"))[:100]
    for number, file in enumerate(files):
        shutil.copyfile(file, folder / ("more" if number % 2 else ".") / f"{number}.png")
    shutil.copyfile(files[0], folder / "copy.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def spec_of(photos: Path, kind: str, *words: str) -> RunSpec:
    return pretrain.read_words(str(photos), [f"kind={kind}", *WORDS, *words])


@pytest.fixture(scope="module", params=["rotation", "simsiam"])
def finished(request, photos, tmp_path_factory):
    """A pretraining of the last stage: its spec, and its folder."""
    spec = spec_of(
        photos, request.param, "phases.0.unfreeze=last", "phases.0.train_batchnorm=false"
    )
    folder = tmp_path_factory.mktemp("pretrained") / request.param
    run_pretraining(spec, start_run(spec, output=folder, suffix=""), reporter=SilentReporter())
    return spec, folder


def weights_of(folder: Path) -> dict[str, list[np.ndarray]]:
    model = keras.models.load_model(folder / "model.keras", compile=False)
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def test_only_the_unfrozen_stage_changes_and_its_batchnorm_stays(finished):
    spec, folder = finished
    before = build_classifier(spec.model, image_size=16, task=SingleLabel(("image",)), seed=0)
    first = {layer.name: layer.get_weights() for layer in before.trunk.layers if layer.weights}
    after = weights_of(folder)
    assert list(after) == list(first)
    for name, arrays in after.items():
        is_equal = all(map(np.array_equal, arrays, first[name]))
        assert is_equal == (name != "small3_conv"), name


def test_the_report_says_what_was_used_and_the_digest_is_that_of_the_model(finished):
    spec, folder = finished
    report = json.loads((folder / "pretraining.json").read_text())
    assert report["kind"] == spec.phases[0].name
    assert (report["num_trained"], report["num_measured"], report["num_unseen"]) == (70, 15, 15)
    assert report["model_sha256"] == sha256_of(folder / "model.keras")
    assert "stay as they are" in report["trained"]
    assert set(report["figures"]) <= {"accuracy", "spread", "loss"}
    images = json.loads((folder / "images.json").read_text())
    assert len({digest for group in images.values() for digest in group}) == 100
    assert len((folder / "history.csv").read_text().splitlines()) == 3
    assert not (folder / "checkpoint").exists()


def test_a_run_takes_the_folder_as_its_backbone(finished):
    _, folder = finished
    spec = ModelSpec(backbone=str(folder))
    classifier = build_classifier(spec, image_size=16, task=SingleLabel(("a", "b")), seed=5)
    loaded = {x.name: x.get_weights() for x in classifier.trunk.layers if x.weights}
    for name, arrays in weights_of(folder).items():
        for one, other in zip(arrays, loaded[name], strict=True):
            np.testing.assert_array_equal(one, other)


def test_python_pretrains_as_the_command_line_does(finished, photos, tmp_path):
    spec, folder = finished
    fields = {
        "backbone": "small",
        "weights": "none",
        "image_size": 16,
        **{"phases.0.epochs": 2, "phases.0.unfreeze": "last", "phases.0.train_batchnorm": False},
    }
    kind, reporter = spec.phases[0].name, SilentReporter()
    path = kt.pretrain(photos, kind=kind, output=tmp_path / "own", reporter=reporter, **fields)
    assert path.is_absolute()
    for name, arrays in weights_of(path).items():
        for one, other in zip(arrays, weights_of(folder)[name], strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(SpecError, match="no pretext task called 'puzzle'"):
        kt.pretrain(photos, kind="puzzle", **fields)


class Interrupting(SilentReporter):
    """Interrupts training after its first epoch."""

    @contextlib.contextmanager
    def training_progress(self, title, epochs, steps_per_epoch):
        def stop(epoch, logs):
            raise KeyboardInterrupt

        yield [keras.callbacks.LambdaCallback(on_epoch_end=stop)]


def test_a_resumed_pretraining_gives_the_same_weights(finished, photos, tmp_path):
    spec, folder = finished
    run = start_run(spec, output=tmp_path / "killed", suffix="")
    with pytest.raises(KeyboardInterrupt):
        run_pretraining(spec, run, reporter=Interrupting())
    run = start_run(spec, output=run.path, resume=True, suffix="")
    run_pretraining(spec, run, reporter=SilentReporter())
    for one, other in zip(weights_of(folder).values(), weights_of(run.path).values(), strict=True):
        for before, after in zip(one, other, strict=True):
            np.testing.assert_array_equal(before, after)
    lines = [(path / "history.csv").read_text().splitlines() for path in (folder, run.path)]
    without_seconds = [[line.rpartition(",")[0] for line in text] for text in lines]
    assert without_seconds[0] == without_seconds[1]


def test_random_weights_train_from_the_lowest_stage_on_with_batchnorm(photos):
    phase = spec_of(photos, "rotation").phases[0]
    assert (phase.name, phase.unfreeze, phase.train_batchnorm) == ("rotation", "stage1", True)
    kept = spec_of(photos, "rotation", "phases.0.unfreeze=last").phases[0]
    assert kept.unfreeze == "last"


def refused(words: list[str], capsys) -> str:
    assert pretrain.main(words) == 2
    return capsys.readouterr().err


def test_wrong_inputs_are_answered_before_any_training(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "few").mkdir()
    for file in sorted(photos.glob("?.png")):
        shutil.copyfile(file, tmp_path / "few" / file.name)
    shown = refused([str(photos), "kind=jigsaw", *WORDS], capsys)
    assert "no pretext task called 'jigsaw'" in shown
    assert "rotation, simsiam" in shown
    assert "data.path has no images" in refused(["empty", *WORDS], capsys)
    shown = refused(["few", *WORDS], capsys)
    assert "too few images to pretrain on" in shown
    assert "5 readable images" in shown
    shown = refused([str(photos), *WORDS, "phases.0.unfreeze=head"], capsys)
    assert "trains stages of the backbone" in shown
    assert "no images, preset" in refused(["nowhere", *WORDS], capsys)
    assert not (tmp_path / "saved_models").exists() or not list(
        (tmp_path / "saved_models").iterdir()
    )


def test_other_images_do_not_continue_a_pretraining(photos, tmp_path):
    spec = spec_of(photos, "rotation")
    run = start_run(spec, output=tmp_path / "killed", suffix="")
    run.write_json("images.json", {"trained": ["a"], "measured": ["b"], "unseen": []})
    with pytest.raises(DataError, match="images have changed"):
        run_pretraining(spec, run, reporter=SilentReporter())


@pytest.mark.parametrize("finished", ["rotation"], indirect=True)
def test_the_same_weights_have_no_gain_and_seen_images_are_not_evaluated(
    finished, digits_folder, capsys
):
    _, folder = finished
    words = ["resnet50", f"data.path={digits_folder}", "data.image_size=16"]
    words += [f"model.backbone={folder}", "model.weights=file", "model.last_stage="]
    assert probe.main([*words, "--labels", "60", "--seeds", "3", "--pretrained", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "215 of 300 images were not seen" in shown
    assert "±0.0 ± 0.0" in shown
    assert "Transfer to" in shown


@pytest.mark.parametrize("finished", ["rotation"], indirect=True)
def test_a_run_on_other_images_is_a_supervised_pretraining(finished, digits_folder, tmp_path):
    spec, folder = finished
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    (run / "pretraining.json").unlink()
    figures = {"phases": [{"seconds": 2.0}, {"seconds": 1.0}]}
    figures["test"] = {"num_examples": 10, "accuracy": 0.5}
    (run / "metrics.json").write_text(json.dumps(figures))
    (run / "splits.json").write_text(json.dumps({"rows": {"train": [{"digest": "a"}], "val": []}}))
    found = read_weights(str(run), spec.model)
    assert (found.source, found.seconds, found.seen) == ("run\naccuracy 0.500", 3.0, {"a"})
    target = override(spec, {"data.path": str(digits_folder)})
    rows = measure_transfer(target, [str(run)], [50], num_draws=2, reporter=SilentReporter())
    header, cells = tabulate(rows)
    assert header == ["weights", "source task", "time", "50 labels", "gain"]
    assert cells[0][0] == "none"
    assert cells[0][-1] == ""
    assert cells[1][:3] == ["run", "run\naccuracy 0.500", "3 s"]
    one, other = (row.accuracies[50] for row in rows)
    gains = np.subtract(other, one)
    half = 12.706 * np.std(gains, ddof=1) / 2**0.5
    assert cells[1][-1].endswith(f"± {100 * half:.1f}")
