"""The Python interface, on real digits and a tiny backbone."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from guide_snippets import snippets
from listener import Listener
from PIL import Image

import keras_transfer as kt
from keras_transfer import api
from keras_transfer.api import RankedBackbones
from keras_transfer.config import spec_to_dict
from keras_transfer.data.records import BadFile
from keras_transfer.errors import DataError, RunError, SpecError
from keras_transfer.evaluation.recorded import RecordedEvaluation
from keras_transfer.evaluation.results import Evaluation, Headline
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.storage.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUIET = SilentReporter()
FIELDS = {
    "backbone": "small",
    "weights": "none",
    "image_size": 32,
    "resize": "squash",
    "count": 1,
    "phases.0.epochs": 2,
    "phases.1.epochs": 1,
    "cache.precision": "float32",
    "training.refit": False,
}


NAMES = """
    auto combine distill fine_tune tune pretrain rank_backbones load_run Run RunSpec load_spec
    override list_backbones load_dataset build_model KerasTransferError register
"""


def test_the_public_names_are_these():
    assert sorted(kt.__all__) == sorted(NAMES.split())
    assert sorted(kt.__all__) == [name for name in dir(kt) if not name.startswith("__")]
    with pytest.raises(AttributeError, match="run_transfer"):
        kt.run_transfer  # noqa: B018


def test_importing_the_package_changes_nothing():
    code = (
        "import os, sys; before = dict(os.environ); import keras_transfer as kt; "
        "kt.list_backbones(), kt.load_spec('quickstart'), kt.RunSpec, kt.KerasTransferError; "
        "assert os.environ == before; print({'keras', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documents_use_public_names_only(page):
    assert set(re.findall(r"\bkt\.(\w+)", page.read_text("utf-8"))) <= set(kt.__all__)


def test_backbones_are_listed_by_name():
    assert {"resnet50", "mobilenet_v2"} <= set(kt.list_backbones())


def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="study of several trainings"):
        kt.fine_tune("images", folds=3)
    with pytest.raises(SpecError, match="there are no images"):
        kt.fine_tune()
    for several in (["a", "b"], 3):
        with pytest.raises(SpecError, match="no source of images"):
            kt.fine_tune(several)
    with pytest.raises(SpecError, match="a spec and a preset"):
        kt.tune(kt.RunSpec(), preset="quickstart")
    for space in ({"phases.1.learning_rate": 0.1}, [], {"model.head": "mlp"}):
        with pytest.raises(SpecError, match="space"):
            kt.tune("images", preset="fast", space=space)
    with pytest.raises(SpecError, match="did you mean 'backbone'"):
        kt.fine_tune("images", bakcbone="vgg16")
    with pytest.raises(SpecError, match="images become squares"):
        kt.fine_tune("images", preset="fast", image_size=(96, 64))
    with pytest.raises(DataError, match="images without labels"):
        kt.fine_tune(np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="not images with a label each"):
        kt.fine_tune(np.zeros((2, 8, 8, 3), np.uint8), [0], preset="fast")
    assert not list(tmp_path.iterdir())


def test_figures_of_a_run_are_attributes():
    per_class = {"a": {"f1": 0.25, "support": 1200, "recall_interval": [0.0, 1.0]}}
    figures = {
        "num_examples": 4,
        "accuracy": 0.75,
        "interval": [0.3, 0.95],
        "log_loss": 0.5,
        "intervals": {"accuracy": [0.3, 0.95]},
        "top_k": {},
        "per_class": per_class,
    }
    evaluation: Evaluation = RecordedEvaluation(figures)
    assert (evaluation.accuracy, evaluation.num_examples) == (0.75, 4)
    assert evaluation.headline == Headline("accuracy", 0.75, (0.3, 0.95))
    assert evaluation.to_dict() == figures
    assert repr(evaluation) == "Accuracy 0.75 (0.3 to 0.95), log loss 0.5."
    (table,) = evaluation.tables()
    assert (table.header, table.rows) == (["class", "F1", "images"], [["a", "0.250", "1,200"]])
    assert evaluation._repr_markdown_().splitlines()[2::2] == [
        "| class | F1 | images |",
        "| a | 0.250 | 1,200 |",
    ]
    with pytest.raises(AttributeError, match="'recall'"):
        evaluation.recall  # noqa: B018


def test_only_finished_runs_are_opened(tmp_path):
    with pytest.raises(RunError, match="there is no run"):
        kt.load_run(tmp_path)
    folder = RunFolder(tmp_path)
    folder.write_json("spec.json", spec_to_dict(kt.RunSpec()))
    with pytest.raises(RunError, match="an unfinished run"):
        kt.load_run(tmp_path)
    (tmp_path / "winner").mkdir()
    with pytest.raises(RunError, match="winner"):
        kt.load_run(tmp_path)


def test_a_ranking_is_a_mapping_in_order(tmp_path):
    figures = {"b": {"latency_ms": 1.0}, "a": {"latency_ms": 2.0}}
    ranking = RankedBackbones(tmp_path, "b", "b is best.", "| | ms |", figures)
    assert (list(ranking), len(ranking), ranking["a"]["latency_ms"]) == (["b", "a"], 2, 2.0)
    assert repr(ranking) == "| | ms |\n\nb is best."


def test_datasets_and_models_are_plain_keras(digits_folder):
    dataset = kt.load_dataset(
        str(digits_folder), reporter=QUIET, image_size=32, resize="squash", train_size=32
    )
    model = kt.build_model("small", class_names=dataset.class_names, weights="none", image_size=32)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    fitted = model.fit(dataset.train, validation_data=dataset.val, shuffle=False, verbose=0)
    assert set(fitted.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}


@pytest.fixture(scope="module")
def images(digits_folder, tmp_path_factory) -> Path:
    """Sixty digits of two classes."""
    folder = tmp_path_factory.mktemp("two") / "my_images"
    for name in ("digit_0", "digit_1"):
        (folder / name).mkdir(parents=True)
        for file in sorted((digits_folder / name).iterdir())[:30]:
            shutil.copy(file, folder / name)
    return folder


OWN_DATA = snippets("python", "## Your data", "## A finished run")


@pytest.mark.parametrize("snippet", OWN_DATA, ids=["paths", "table", "arrays", "dataset", "tfds"])
def test_data_in_hand_are_read_as_the_guide_says(snippet, images, tmp_path, monkeypatch):
    """All but the training: data are stored, read, checked and split."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(images, "my_images")
    rows = [f"{file.as_posix()},{file.parent.name}" for file in Path("my_images").glob("*/*")]
    Path("labels.csv").write_text("\n".join(["path,label", *rows]))
    seen = []

    def read(spec, folder, **_):
        dataset = kt.load_dataset(spec, image_size=32, reporter=QUIET)
        seen.append((len(dataset.data.records.items), dataset.class_names))
        return SimpleNamespace(run=folder)

    monkeypatch.setattr(api, "run_transfer", read)
    monkeypatch.setattr(api, "show_result", lambda *_: None)
    exec(snippet, {})
    number = 1797 if "digits" in snippet else 60
    assert {count for count, _ in seen} == {number}
    assert all(len(names) == (10 if number == 1797 else 2) for _, names in seen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 image was not predicted")
def test_the_guide_predicts_explains_and_evaluates(run, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("saved_models").mkdir()
    Path("saved_models/my_photos").symlink_to(run.path)
    Path("new_photos").mkdir()
    shutil.copy(next(images.glob("digit_0/*")), "new_photos/tulips.jpg")
    Path("new_photos/broken.jpg").write_bytes(b"")
    for snippet in snippets("python", "### Predict", "### Export and serve"):
        exec(snippet, {})
    text = capsys.readouterr().out
    assert "new_photos/tulips.jpg digit_" in text
    assert "new_photos/broken.jpg " in text
    assert "support" in text
    with Image.open("tulips_explained.png") as drawn:
        assert drawn.height > 0


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> kt.Run:
    saved = tmp_path_factory.mktemp("saved")
    run = kt.fine_tune(images, output=saved / "run", reporter=QUIET, **FIELDS)
    return kt.load_run(run.path.rename(saved / "moved"))


@pytest.mark.slow
def test_a_run_takes_floats_images_of_pillow_and_labels_that_are_numbers(run, images):
    files = sorted(images.glob("digit_0/*.png"))[:2]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    good = run.predict(files)[0]
    np.testing.assert_array_equal(
        run.predict(pixels.astype(float))[0].outputs, run.predict(pixels)[0].outputs
    )
    (drawn,) = run.predict(Image.fromarray(pixels[0]))
    np.testing.assert_allclose(drawn.outputs, good.outputs, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="only image files can be explained"):
        run.explain(pixels[0])
    numbered = run.evaluate((pixels, [0, 0]), include_training=True, reporter=QUIET)
    assert (numbered.num_examples, len(numbered.interval)) == (2, 2)
    with pytest.raises(DataError, match="not the number of one of the classes"):
        run.evaluate((pixels, [0, 2]), reporter=QUIET)


@pytest.mark.slow
def test_a_run_evaluates_predicts_and_explains(run, images):
    assert run.class_names == ("digit_0", "digit_1")
    assert (run.spec.name, run.spec.data.path) == ("my_images", str(images))
    assert run.search is None
    assert repr(run).startswith(f"Run('{run.path}': small, 2 classes)\nAccuracy ")
    assert isinstance(run.model, keras.Model)
    again = run.evaluate(reporter=QUIET)
    assert again.headline == run.evaluation.headline
    assert again.headline.value == run.evaluation.accuracy
    assert (repr(again), again.to_dict()) == (repr(run.evaluation), run.evaluation.to_dict())
    assert again.per_class["digit_0"]["support"] == again.confusion[0][0] + again.confusion[0][1]
    elsewhere = run.evaluate(images, reporter=QUIET)
    assert elsewhere.to_dict()["num_examples"] == 9  # Those that training did not use.
    everything = run.evaluate(images, include_training=True, reporter=QUIET)
    assert everything.to_dict()["num_examples"] == 60

    files = sorted(images.glob("digit_0/*.png"))[:2]
    with pytest.warns(UserWarning, match=r"1 image was not predicted: nothing\.png"):
        good, bad, other = run.predict([files[0], "nothing.png", str(files[1])])
    assert good.label in run.class_names
    assert other.path == files[1].as_posix()
    assert isinstance(bad, BadFile)
    assert "no such file" in bad.reason
    assert (bad.label, bad.labels, good.reason) == ("", (), "")
    assert not bad.confidence >= 0
    assert len(run.predict(images)) == 60
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    for one, file in zip(run.predict(pixels), run.predict(files), strict=True):
        np.testing.assert_allclose(one.outputs, file.outputs, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="float64"):
        run.predict(pixels / 255)
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"path": files, "label": ["digit_0"] * 2})
    few = run.evaluate(table, include_training=True, reporter=QUIET)
    assert few.to_dict()["num_examples"] == 2
    in_memory = [
        (pixels, np.arange(2)),
        tf.data.Dataset.from_tensor_slices((pixels, [1, 0])).batch(2),
        pandas.DataFrame({"path": [file.read_bytes() for file in files]}),
    ]
    for data in in_memory:
        rows = run.predict(data)
        assert [one.path for one in rows] == ["0", "1"]
        for one, file in zip(rows, run.predict(tuple(files)), strict=True):
            np.testing.assert_array_equal(one.outputs, file.outputs)
    (row,) = run.predict(pandas.DataFrame({"path": files[:1], "label": ["any"]}))
    assert row.path == files[0].as_posix()
    assert run.history["phase"][0] == run.spec.phases[0].name
    assert run.history["epoch"] == [*range(1, len(run.history["epoch"]) + 1)]

    explanation = run.explain(files[0], "digit_1")
    assert explanation.explained == "digit_1"
    assert explanation._repr_png_().startswith(b"\x89PNG")
    assert explanation.draw().height > explanation.pixels.shape[0]
    with pytest.raises(DataError, match="no such file"):
        run.explain("nothing.png")


@pytest.mark.slow
def test_arrays_train_as_their_files_do(images, run, tmp_path):
    names = sorted(folder.name for folder in images.iterdir())
    files = sorted(images.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    labels = np.array([names.index(file.parent.name) for file in files])
    stored = kt.fine_tune(
        (pixels, labels), class_names=names, output=tmp_path / "run", reporter=QUIET, **FIELDS
    )
    assert stored.class_names == tuple(names)
    assert stored.spec.data.source == "csv"
    assert stored.evaluation.num_examples == run.evaluation.num_examples
    assert stored.predict(files[0])[0].label in names
    # Pixels that the run was trained on give the same files, so that they are found.
    assert stored.evaluate((pixels, labels), reporter=QUIET).num_examples == 9


@pytest.mark.slow
def test_numbers_are_indices_of_the_classes(images, run):
    pandas = pytest.importorskip("pandas")
    files = sorted(images.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    numbers = np.array([run.class_names.index(file.parent.name) for file in files])
    expected = run.evaluate(images, include_training=True, reporter=QUIET).confusion
    table = pandas.DataFrame({"path": files, "label": numbers})
    for data in ((pixels, numbers), tf.data.Dataset.from_tensor_slices((pixels, numbers)), table):
        listening = Listener()
        found = run.evaluate(data, include_training=True, reporter=listening)
        assert found.confusion == expected
        assert any("0 is digit_0, 1 is digit_1;" in one for one in listening.said)
    turned = run.evaluate(
        (pixels, 1 - numbers), class_names=run.class_names[::-1], include_training=True
    )
    assert turned.confusion == expected
    for verb in (run.evaluate, run.extend):
        with pytest.raises(DataError, match="not the number of one of the classes") as caught:
            verb(table.assign(label=numbers + 1), reporter=QUIET)
        assert (caught.value.expected, caught.value.received) == ("numbers from 0 to 1", "2")


@pytest.mark.slow
def test_pixels_that_cannot_be_compared_with_the_training_are_named(images, run):
    files = sorted(images.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    labels = np.array([file.parent.name for file in files])
    with pytest.warns(UserWarning, match="images that the run was trained on may count") as caught:
        run.evaluate((pixels, labels), reporter=QUIET)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("names", "labels", "found"),
    [
        (("a", "b"), [1, 0], ["b", "a"]),
        (("a", "b"), ["b", "a"], ["b", "a"]),
        (("3", "7"), [7, 3], ["7", "3"]),
        (("1", "x"), [1, 0], ["1", "0"]),
    ],
)
def test_numbers_are_names_where_a_class_is_called_by_a_number(
    names, labels, found, tmp_path, monkeypatch
):
    monkeypatch.setenv("KERAS_TRANSFER_HOME", str(tmp_path / "home"))
    run = of_classes(tmp_path, names)
    pixels = np.stack([np.full((4, 4, 3), shade, np.uint8) for shade in (1, 200)])
    path = Path(run._labelled((pixels, np.array(labels, object)), None, QUIET))
    rows = csv.DictReader(path.read_text().splitlines())
    shades = {}
    for row in rows:
        with Image.open(path.parent / row["path"]) as image:
            shades[image.getpixel((0, 0))[0]] = row["label"]
    assert [shades[1], shades[200]] == found


def of_classes(folder, names) -> kt.Run:
    run = kt.Run(folder)
    run.__dict__.update(class_names=names, spec=kt.RunSpec())
    return run


def test_a_data_set_with_some_of_the_classes_keeps_its_names(images, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_HOME", str(tmp_path / "home"))
    shutil.copytree(images / "digit_1", tmp_path / "some" / "digit_1")
    dataset = keras.utils.image_dataset_from_directory(tmp_path / "some", verbose=False)
    run = of_classes(tmp_path, ("digit_0", "digit_1"))
    path = Path(run._labelled(dataset, None, QUIET))
    rows = csv.DictReader(path.read_text().splitlines())
    assert {row["label"] for row in rows} == {"digit_1"}


def test_a_run_is_exported_in_another_format(run):
    folder = run.export(formats=["keras"], reporter=QUIET)
    assert folder == run.path / "formats" / "2"
    assert (folder / "model.keras").is_file()
    assert (run.path / "export" / "2" / "saved_model.pb").is_file()


@pytest.mark.slow
def test_a_search_returns_the_run_of_its_best_trial(images, tmp_path):
    best = kt.tune(
        images,
        trials=1,
        space={"model.dropout": [0.0, 0.5]},
        output=tmp_path / "search",
        reporter=QUIET,
        refits=0,
        **FIELDS,
    )
    assert best.path == tmp_path / "search" / "winner"
    (trial,) = best.search["trials"]
    assert best.spec.model.dropout == trial["values"]["model.dropout"]
    assert kt.load_run(best.path).evaluation.num_examples > 0


@pytest.mark.slow
def test_backbones_are_ranked(images, tmp_path):
    shallow = {"backbone": "small", "last_stage": "stage1"}
    ranking = kt.rank_backbones(
        images, ["small", shallow], output=tmp_path / "rank", reporter=QUIET, folds=2, **FIELDS
    )
    assert ranking.recommended in list(ranking)
    assert len(ranking) == 2
    assert ranking.sentence in repr(ranking)
    assert (ranking.path / "rank.png").is_file()
