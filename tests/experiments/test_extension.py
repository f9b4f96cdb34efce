"""Finished runs that learn new images and classes: splits, listing, figures, errors, resuming."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import keras_transfer as kt
from keras_transfer.errors import DataError, KerasTransferError, SpecError
from keras_transfer.experiments import extension
from keras_transfer.reporting.reporter import SilentReporter


def copy_classes(source: Path, target: Path, names) -> Path:
    for name in names:
        shutil.copytree(source / name, target / name)
    return target


@pytest.fixture(scope="module")
def folders(digits_folder, tmp_path_factory):
    """Digits 0 to 7, and 8 and 9 with a copy of a digit 0."""
    root = tmp_path_factory.mktemp("digits")
    names = sorted(folder.name for folder in digits_folder.iterdir())
    old = copy_classes(digits_folder, root / "old", names[:8])
    new = copy_classes(digits_folder, root / "new", names[8:])
    (new / names[0]).mkdir()
    shutil.copy(sorted((old / names[0]).iterdir())[0], new / names[0] / "copy.png")
    return old, new


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    return kt.fine_tune(
        folders[0],
        backbone="small",
        weights="none",
        image_size=16,
        phases=[{"name": "frozen", "method": "exact"}],
        output=tmp_path_factory.mktemp("runs") / "eight",
        reporter=SilentReporter(),
    )


@pytest.fixture(scope="module")
def extended(run, folders):
    return run.extend(folders[1], output=run.path.parent / "ten", reporter=SilentReporter())


def read_rows(run):
    return json.loads((run.path / "splits.json").read_text())["rows"]


def test_old_images_keep_their_splits_and_copies_are_left_out(run, extended):
    before, after = read_rows(run), read_rows(extended)
    for split in ("train", "val", "test"):
        old = {row["digest"] for row in before[split]}
        now = {row["digest"] for row in after[split]}
        added = [row for row in after[split] if row["digest"] not in old]
        assert old <= now
        assert {row["label"] for row in added} == {"digit_8", "digit_9"}
    with (run.path.parent / "ten.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == sum(map(len, after.values()))
    assert not any("copy.png" in row["path"] for row in rows)


def test_it_is_an_ordinary_run_that_predicts_old_and_new_classes(run, extended, folders):
    assert len(extended.class_names) == 10
    files = [
        sorted((folders[0] / "digit_0").iterdir())[0],
        next((folders[1] / "digit_9").iterdir()),
    ]
    assert [one.label in extended.class_names for one in extended.predict(files)] == [True, True]
    assert (extended.path / "export" / "1" / "saved_model.pb").is_file()
    history = json.loads((extended.path / "cache.json").read_text())
    new = [row for rows in read_rows(extended).values() for row in rows if row["label"] > "digit_7"]
    assert history["views_computed"] <= 4 * len(new), "old features are found"
    assert history["views_found"] > 0


def test_the_card_lists_what_trained_the_model_and_the_images_of_the_refit(extended):
    card = json.loads((extended.path / "export" / "1" / "card.json").read_text())
    assert [phase["name"] for phase in card["phases"]] == ["extended"]
    assert card["data"]["num_refit"] == card["data"]["num_train"] + card["data"]["num_val"]
    text = (extended.path / "export" / "README.md").read_text()
    assert f"then once more on all {card['data']['num_refit']}" in text
    assert "| extended | exact | head | solved | – |" in text


def test_the_report_separates_what_is_forgotten_from_what_is_confused(run, extended):
    figures = json.loads((extended.path / extension.REPORT_FILE).read_text())
    assert figures["new_classes"] == ["digit_8", "digit_9"]
    assert figures["num_old_test_images"] == len(read_rows(run)["test"])
    change = figures["old_accuracy_after"] - figures["old_accuracy_before"]
    np.testing.assert_allclose(figures["gain"]["difference"], change, atol=1e-9)
    assert figures["gain_among_old_classes"]["difference"] >= figures["gain"]["difference"]
    old, new = (figures[f"num_{kind}_test_images"] for kind in ("old", "new"))
    share = old / (old + new)
    overall = share * figures["old_accuracy_after"] + (1 - share) * figures["new_accuracy"]
    np.testing.assert_allclose(figures["accuracy"], overall, atol=1e-9)
    for part in ("old test images: ", "new test images: ", "Accuracy on all", "Among the old"):
        assert part in figures["sentence"]


def test_a_finished_one_is_not_done_again_and_other_images_are_refused(run, extended, folders):
    output = run.path.parent / "ten"
    with pytest.raises(KerasTransferError, match="finished"):
        run.extend(folders[1], output=output, resume=True, reporter=SilentReporter())
    with pytest.raises(DataError, match="has other images"):
        run.extend(
            folders[1], output=output, resume=True, reporter=SilentReporter(), val_fraction=0.3
        )


def test_an_interrupted_one_is_compared_when_it_is_resumed(run, extended, folders):
    report = extended.path / extension.REPORT_FILE
    before = json.loads(report.read_text())
    report.unlink()
    run.extend(folders[1], output=extended.path, resume=True, reporter=SilentReporter())
    assert json.loads(report.read_text()) == before


def test_errors_come_before_anything_is_written(run, folders, tmp_path):
    def fails(images, error, match):
        with pytest.raises(error, match=match):
            run.extend(images, output=tmp_path / "none", reporter=SilentReporter())
        assert not list(tmp_path.glob("none*"))

    fails(folders[0], DataError, "no new image")
    fails(tmp_path / "nowhere", DataError, "not a folder")
    fields = {"phases.0.method": "none"}
    with pytest.raises(SpecError, match="no method called 'none'"):
        run.extend(folders[1], output=tmp_path / "none", reporter=SilentReporter(), **fields)
    assert not list(tmp_path.glob("none*"))
    few = tmp_path / "few"
    (few / "digit_8").mkdir(parents=True)
    shutil.copy(next((folders[1] / "digit_8").iterdir()), few / "digit_8" / "one.png")
    fails(few, DataError, "'digit_8' has fewer files than splits")
    with pytest.raises(SpecError, match="imagesize"):
        run.extend(few, imagesize=3, reporter=SilentReporter())
