"""An adapted run is an ordinary run with a report, on real digits and a small trunk."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from listener import Listener
from PIL import Image

import keras_transfer as kt
from keras_transfer.config import override
from keras_transfer.errors import DataError, SpecError
from keras_transfer.experiments.adapt import adaptation, candidates
from keras_transfer.experiments.adapt.images import last_dense
from keras_transfer.inference.prediction import load_run
from keras_transfer.reporting.reporter import SilentReporter
from pipelines import adapt as verb
from pipelines.arguments import USER_ERROR

SILENT = SilentReporter()


@pytest.fixture(scope="module")
def run(digits_folder, tmp_path_factory) -> kt.Run:
    """A run with a solved head on a small random trunk."""
    return kt.fine_tune(
        digits_folder,
        output=tmp_path_factory.mktemp("runs") / "run",
        reporter=SILENT,
        **{
            "model.backbone": "small",
            "model.weights": "none",
            "data.image_size": 16,
            "views.count": 1,
            "phases": [{"name": "frozen", "method": "exact"}],
            "cache.precision": "float32",
        },
    )


@pytest.fixture(scope="module")
def pale(digits_folder, tmp_path_factory):
    """All digits with a fifth of the contrast, by class."""
    folder = tmp_path_factory.mktemp("pale")
    for file in sorted(digits_folder.glob("*/*.png")):
        target = folder / file.parent.name
        target.mkdir(exist_ok=True)
        pixels = np.asarray(Image.open(file), np.float32)
        Image.fromarray(np.uint8(0.2 * pixels + 150)).save(target / file.name)
    return folder


@pytest.fixture(scope="module")
def adapted(run, pale, tmp_path_factory) -> kt.Run:
    output = tmp_path_factory.mktemp("adapted") / "run"
    return run.adapt(pale, kind="adabn+coral", output=output, reporter=SILENT)


def accuracy(run, folder) -> float:
    return run.evaluate(folder, include_training=True, reporter=SILENT).accuracy


def report_of(run) -> dict:
    return json.loads((run.path / "adaptation.json").read_text())


def test_an_adapted_run_is_ordinary_and_better_on_the_target(run, adapted, pale):
    assert accuracy(adapted, pale) > accuracy(run, pale) + 0.3
    assert adapted.spec.data == run.spec.data
    assert (adapted.path / "export" / "1" / "saved_model.pb").is_file()
    assert adapted.evaluation.num_examples == run.evaluation.num_examples
    assert (adapted.path / "history.csv").read_bytes() == (run.path / "history.csv").read_bytes()
    report = report_of(adapted)
    assert [one["name"] for one in report["candidates"]] == ["source", "adabn+coral"]
    assert report["candidates"][1]["own_test"] == pytest.approx(adapted.evaluation.accuracy)
    assert report["sentence"] in (adapted.path / "adaptation.md").read_text()
    assert (adapted.path / report["made_of"]).resolve() == run.path.resolve()


def test_the_card_says_what_it_was_adapted_to_also_of_a_later_export(adapted, pale):
    second = adapted.export(reporter=SILENT)
    for folder in (adapted.path / "export" / "1", second):
        limits = json.loads((folder / "card.json").read_text())["limits"]
        assert any(f"300 images without labels, '{pale.name}'" in limit for limit in limits)


def test_only_statistics_and_the_head_are_changed(run, adapted):
    kept = [v for v in run.model.variables if "moving" not in v.path and "logits" not in v.path]
    by_path = {v.path: v for v in adapted.model.variables}
    for variable in kept:
        np.testing.assert_array_equal(variable, by_path[variable.path])
    assert not np.array_equal(last_dense(run.model).kernel, last_dense(adapted.model).kernel)


def test_the_run_as_it_is_has_the_same_bits(run, pale, tmp_path):
    same = run.adapt(pale, kind="source", output=tmp_path / "run", reporter=SILENT)
    assert (same.path / "model.keras").read_bytes() == (run.path / "model.keras").read_bytes()
    assert same.evaluation.accuracy == run.evaluation.accuracy
    assert "has the model of the run as it is" in report_of(same)["sentence"]
    card = json.loads((same.path / "export" / "1" / "card.json").read_text())
    assert not any("adapted" in limit for limit in card["limits"])


def test_auto_is_clearly_better_on_the_target_and_compares_all_kinds(run, pale, tmp_path):
    output = tmp_path / "run"
    assert verb.main([str(run.path), str(pale), "--output", str(output)]) == 0
    auto = kt.load_run(output)
    report = report_of(auto)
    assert len(report["candidates"]) == 8
    assert not report["is_forced"]
    assert accuracy(auto, pale) > accuracy(run, pale) + 0.2


def test_labelled_images_decide_by_their_log_loss(run, pale, tmp_path, monkeypatch):
    # The files of a run are those of other tests.
    monkeypatch.setattr(adaptation, "_write_run", lambda *_: None)
    few = tmp_path / "few"
    for folder in sorted(pale.iterdir())[:5]:
        (few / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:4]:
            shutil.copy(file, few / folder.name)
    chosen = run.adapt(pale, labelled=few, output=tmp_path / "run", reporter=SILENT)
    report = report_of(chosen)
    losses = {one["name"]: one["labelled_loss"] for one in report["candidates"]}
    assert report["chosen"] == min(losses, key=losses.__getitem__)
    assert report["num_labelled"] == 20
    assert "lowest log loss on 20 labelled" in report["sentence"]


def test_a_killed_adaptation_is_resumed(run, pale, adapted, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    words = {"kind": "adabn+coral", "output": tmp_path / "run", "reporter": SILENT}
    for name in ("Comparer", "write_adaptation"):
        with monkeypatch.context() as patch:
            patch.setattr(adaptation, name, stop)
            with pytest.raises(KeyboardInterrupt):
                run.adapt(pale, resume=(tmp_path / "run").exists(), **words)
    again = run.adapt(pale, resume=True, **words)
    before, after = report_of(adapted), report_of(again)
    assert before["candidates"] == after["candidates"]
    for one, other in zip(adapted.model.weights, again.model.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(kt.errors.RunError, match="is finished"):
        run.adapt(pale, resume=True, **words)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["kind=corall"], "did you mean 'coral'"),
        (["kind=coral+adabn"], "cannot follow"),
        (["kinds=coral"], "no such fields"),
        (["labelled=nowhere"], "nowhere"),
    ],
)
def test_wrong_words_are_told_and_no_folder_is_left(run, pale, words, named, tmp_path, capsys):
    output = tmp_path / "run"
    assert verb.main([str(run.path), str(pale), *words, "--output", str(output)]) == USER_ERROR
    said = capsys.readouterr().err
    assert named.lower() in said.lower()
    assert "To fix it" in said
    assert not output.exists()


def test_too_few_images_are_told_and_copies_of_test_images_do_not_count(
    run, digits_folder, tmp_path
):
    output = tmp_path / "run"
    with pytest.raises(DataError, match="no images"):
        run.adapt(tmp_path, output=output, reporter=SILENT)
    few = tmp_path / "few"
    few.mkdir()
    rows = json.loads((run.path / "splits.json").read_text())["rows"]["test"]
    for row in rows:
        shutil.copy(digits_folder / row["path"], few / row["path"].replace("/", "_"))
    with pytest.raises(DataError, match="too few images") as told:
        run.adapt(few, output=output, reporter=SILENT)
    assert f"{len(rows)} that are in the validation or test split" in told.value.received
    assert not output.exists()


def test_other_tasks_are_refused(run, monkeypatch, pale, tmp_path):
    loaded = adaptation.load_run(run.path)
    monkeypatch.setattr(type(loaded.task), "name", "regression")
    monkeypatch.setattr(adaptation, "load_run", lambda path: loaded)
    with pytest.raises(SpecError, match="cannot be adapted"):
        run.adapt(pale, output=tmp_path / "run", reporter=SILENT)


def test_a_private_run_is_refused_because_heads_are_solved_on_its_images(run):
    loaded = load_run(run.path)
    private = {"phases": [{"name": "head", "method": "private"}], "training.refit": False}
    spec = override(loaded.spec, private)
    with pytest.raises(SpecError, match="privacy budget"):
        candidates.check_run(dataclasses.replace(loaded, spec=spec))


def test_a_network_without_batchnorm_is_adapted_by_the_other_kinds(
    run, pale, monkeypatch, tmp_path
):
    monkeypatch.setattr(candidates, "norms_of", lambda model: [])
    with pytest.raises(SpecError, match="cannot be adapted by adabn") as told:
        run.adapt(pale, kind="adabn+coral", output=tmp_path / "run", reporter=SILENT)
    assert "no BatchNormalization" in told.value.received
    asked, listener = [], Listener()

    class Stopped:
        def __init__(self, *_, **__): ...

        def compare(self, names, **_):
            asked.extend(names)
            raise KeyboardInterrupt

    monkeypatch.setattr(adaptation, "Comparer", Stopped)
    with pytest.raises(KeyboardInterrupt):
        run.adapt(pale, output=tmp_path / "run", reporter=listener)
    assert asked == ["source", "coral", "self_training", "coral+self_training"]
    assert any("Left out because the network has no" in sentence for sentence in listener.said)
