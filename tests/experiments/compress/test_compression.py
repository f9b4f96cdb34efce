"""A compressed run is an ordinary run with a report, on real digits and a small trunk."""

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from listener import Listener

import keras_transfer as kt
from keras_transfer.compression.clusters import read_codebooks
from keras_transfer.config import override
from keras_transfer.errors import DataError, SpecError
from keras_transfer.experiments import contender_plot
from keras_transfer.experiments.compress import comparison, compression, trunk
from keras_transfer.inference.prediction import load_run
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.storage.model_files import find_file
from pipelines import compress as verb
from pipelines.arguments import USER_ERROR

SILENT = SilentReporter()


def save_wide(file: Path) -> Path:
    """A Keras file of a trunk with more channels than it needs."""
    keras.utils.set_random_seed(1)
    image = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(image)
    for number, width in enumerate((32, 48)):
        x = layers.Conv2D(width, 3, strides=2, padding="same", name=f"conv{number}")(x)
        x = layers.BatchNormalization(name=f"norm{number}")(x)
        inner = layers.ReLU(name=f"relu{number}")(x)
        inner = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"in{number}")(
            inner
        )
        x = layers.Add(name=f"sum{number}")(
            [x, layers.Conv2D(width, 1, name=f"out{number}")(inner)]
        )
    keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x))).save(file)
    return file


@pytest.fixture(scope="module")
def original(digits_folder, tmp_path_factory) -> kt.Run:
    """A run with a solved head on the wide trunk."""
    folder = tmp_path_factory.mktemp("original")
    return kt.fine_tune(
        digits_folder,
        output=folder / "run",
        reporter=SILENT,
        **{
            "model.backbone": str(save_wide(folder / "wide.keras")),
            "data.image_size": 16,
            "views.count": 1,
            "phases": [{"name": "frozen", "method": "exact"}],
            "cache.precision": "float32",
        },
    )


@pytest.fixture(scope="module")
def small(original, tmp_path_factory) -> kt.Run:
    output = tmp_path_factory.mktemp("small") / "run"
    return original.compress(channels=0.5, output=output, reporter=SILENT)


def test_the_compressed_run_is_an_ordinary_smaller_run(original, small, digits_folder):
    assert small.model.count_params() < 0.7 * original.model.count_params()
    assert small.spec.data == original.spec.data
    assert small.evaluation.num_examples == original.evaluation.num_examples
    assert small.evaluation.accuracy > 0.5
    assert (small.path / "export" / "1" / "saved_model.pb").is_file()
    assert list(small.predict(next(digits_folder.rglob("*.png"))))


def test_the_report_has_both_networks_and_the_paired_change(original, small):
    report = json.loads((small.path / "compression.json").read_text())
    before, after = report["contenders"]
    assert before["name"] == "original"
    assert before["score"] == pytest.approx(original.evaluation.accuracy)
    assert after["score"] == pytest.approx(small.evaluation.accuracy)
    assert report["gain"] == pytest.approx(after["score"] - before["score"])
    assert report["gain_interval"][0] <= report["gain"] <= report["gain_interval"][1]
    assert after["num_parameters"] == small.model.count_params()
    assert before["agreement"] == 1
    assert (
        f"{after['num_parameters'] / before['num_parameters']:.2f} × the parameters"
        in (report["sentence"])
    )
    assert report["sentence"] in (small.path / "compression.md").read_text()
    assert (small.path / "compression.png").stat().st_size > 5_000


def test_the_trunk_is_made_once_and_again_where_it_is_gone(original, small):
    run = load_run(original.path)
    file = find_file(small.spec.model.backbone)
    before = file.stat().st_mtime_ns
    again = trunk.compressed_spec(run, (("channels", 0.5),), reporter=SILENT)
    assert again.model.backbone == str(file)
    assert file.stat().st_mtime_ns == before
    content = file.read_bytes()
    file.unlink()
    trunk.compressed_spec(run, (("channels", 0.5),), reporter=SILENT)
    assert file.read_bytes() == content  # Its digest is in the specs of runs, which are resumed.
    other = trunk.compressed_spec(run, (("channels", 0.25),), reporter=SILENT)
    assert other.model.backbone != str(file)


def test_a_compressed_run_can_be_compressed_again_and_taught(original, small, tmp_path):
    smallest = small.compress(
        low_rank=0.05,
        features=0.25,
        distill=True,
        formats="onnx",
        output=tmp_path / "run",
        reporter=SILENT,
    )
    assert smallest.model.count_params() < small.model.count_params()
    (phase,) = smallest.spec.phases
    assert phase.method == "distill"
    assert find_file(phase.method_options["teacher"]) == find_file(str(small.path))
    report = json.loads((smallest.path / "compression.json").read_text())
    names = ["original", small.path.name, "compressed", "compressed, onnx"]
    contenders = {one["name"]: one for one in report["contenders"]}
    assert list(contenders) == names
    before, _, after, form = contenders.values()
    assert before["score"] == pytest.approx(original.evaluation.accuracy)
    assert form["score"] == after["score"]
    assert form["num_bytes"] == (smallest.path / "formats" / "1" / "model.onnx").stat().st_size
    assert report["gain"] == pytest.approx(after["score"] - before["score"])
    assert (smallest.path / report["made_of"]).resolve() == small.path.resolve()


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("model.keras", None, "model.keras"),
        ("spec.json", None, "there is no run"),
        ("checksums.json", b"{", "checksums.json"),
        ("splits.json", b"{}", "splits.json"),
    ],
)
def test_an_ancestor_that_cannot_be_compared_is_left_out(
    name, content, named, original, small, tmp_path
):
    first = Path(shutil.copytree(original.path, tmp_path / "first"))
    second = Path(shutil.copytree(small.path, tmp_path / "second"))
    third = Path(shutil.copytree(small.path, tmp_path / "third"))
    for folder, made_of in ((second, "../first"), (third, "../second")):
        (folder / "compression.json").write_text(json.dumps({"made_of": made_of}))
    (second / name).unlink()
    if content is not None:
        (second / name).write_bytes(content)
    listener = Listener()
    found = comparison.ancestors(load_run(third), listener)
    assert [run.folder.path for run in found] == [first]
    (sentence,) = listener.said
    assert str(second) in sentence
    assert named in sentence


def test_ancestors_are_looked_for_where_the_images_of_the_compressed_run_are(
    original, small, digits_folder, tmp_path
):
    first = Path(shutil.copytree(original.path, tmp_path / "first"))
    second = Path(shutil.copytree(small.path, tmp_path / "second"))
    (second / "compression.json").write_text(json.dumps({"made_of": "../first"}))
    shutil.rmtree(first / "images", ignore_errors=True)
    (tmp_path / "photos").symlink_to(digits_folder)
    run = load_run(second)
    listener = Listener()
    moved = override(run.spec, {"data.path": str(tmp_path / "photos")})
    (found,) = comparison.ancestors(dataclasses.replace(run, spec=moved), listener)
    assert found.spec.data.path == str(tmp_path / "photos")
    gone = override(run.spec, {"data.path": str(tmp_path / "gone")})
    assert not comparison.ancestors(dataclasses.replace(run, spec=gone), listener)
    (second / "compression.json").write_text("{")
    assert not comparison.ancestors(run, listener)
    assert [str(first) in listener.said[0], str(second) in listener.said[1]] == [True, True]


def test_shared_weights_stay_shared_and_are_written_as_codebooks(original, tmp_path):
    words = {"clusters": 8, "output": tmp_path / "run", "reporter": SILENT}
    shared = original.compress(**words)
    for layer in shared.model.layers:
        if layer.name.startswith(("conv", "in", "out")):
            assert len(np.unique(layer.get_weights()[0])) <= 8
    found = read_codebooks(tmp_path / "run" / "weights.npz")
    assert len(found) == len(shared.model.weights)
    report = json.loads((tmp_path / "run" / "compression.json").read_text())
    before, after = report["contenders"]
    assert after["num_packed_bytes"] < 0.5 * before["num_packed_bytes"]


def test_an_interrupted_comparison_is_made_up_for(original, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    words = {"channels": 0.5, "output": tmp_path / "run", "reporter": SILENT}
    with monkeypatch.context() as patch:
        patch.setattr(compression, "compare", stop)
        with pytest.raises(KeyboardInterrupt):
            original.compress(**words)
    model = (tmp_path / "run" / "model.keras").read_bytes()
    assert not (tmp_path / "run" / "compression.json").exists()
    original.compress(resume=True, **words)
    assert (tmp_path / "run" / "model.keras").read_bytes() == model
    assert (tmp_path / "run" / "compression.json").exists()


def test_formats_of_a_killed_conversion_are_made_up_for(original, small, tmp_path, monkeypatch):
    def stop(what):
        def raise_error(*_, **__):
            raise RuntimeError(what)

        return raise_error

    run = Path(shutil.copytree(small.path, tmp_path / "run"))
    (run / "compression.json").unlink()
    words = {"channels": 0.5, "formats": "keras,onnx", "output": run, "reporter": SILENT}
    monkeypatch.setattr(compression, "check_libraries", lambda formats: None)
    monkeypatch.setattr(compression, "convert_run", stop("converts"))
    monkeypatch.setattr(compression, "compare", stop("compares"))
    (run / "formats" / "1.partial").mkdir(parents=True)
    with pytest.raises(RuntimeError, match="converts"):
        original.compress(resume=True, **words)
    (run / "formats" / "1").mkdir()
    for names, expected in ((["keras"], "converts"), (["onnx", "keras"], "compares")):
        rows = {"formats": [{"name": name} for name in names]}
        (run / "formats" / "1" / "formats.json").write_text(json.dumps(rows))
        with pytest.raises(RuntimeError, match=expected):
            original.compress(resume=True, **words)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["chanels=0.3"], "chanels"),
        (["channels=2"], "channels=2"),
        (["channels=0.3", "data.image_size=8"], "data.image_size"),
        (["channels=0.3", "phases.0.epoch=8"], "epoch"),
    ],
)
def test_wrong_words_are_told_before_anything_is_made(original, words, named, tmp_path, capsys):
    output = tmp_path / "run"
    assert verb.main([str(original.path), *words, "--output", str(output)]) == USER_ERROR
    said = capsys.readouterr().err
    assert named in said
    assert "To fix it" in said
    assert not output.exists()


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert verb.main([str(tmp_path), "channels=0.3"]) == USER_ERROR
    assert "To fix it" in capsys.readouterr().err


def test_changed_images_are_refused(original, tmp_path):
    moved = tmp_path / "elsewhere"
    run = load_run(original.path).at(str(moved))
    with pytest.raises(DataError):
        trunk.compressed_spec(run, (("channels", 0.3),), reporter=SILENT)


def test_combinations_are_refused(original):
    run = load_run(original.path)
    spec = override(run.spec, {"model.backbone": "resnet50+vgg16"})
    with pytest.raises(SpecError, match="combination"):
        trunk.compressed_spec(
            dataclasses.replace(run, spec=spec), (("channels", 0.3),), reporter=SILENT
        )


def test_points_that_another_beats_in_both_are_no_trade_offs():
    costs, ranks = [5.0, 1.0, 3.0, 4.0, 1.0], [0.9, 0.5, 0.8, 0.7, 0.6]
    assert contender_plot.trade_offs(costs, ranks) == [4, 2, 0]
