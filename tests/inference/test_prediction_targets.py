"""Predictions of runs and of exported models, also for thousands of files."""

import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_transfer.config import spec_to_dict
from keras_transfer.errors import RunError
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model.network import as_trained
from keras_transfer.export.saved_model.writer import export_saved_model
from keras_transfer.inference import prediction
from keras_transfer.inference.prediction import (
    Prediction,
    identify,
    open_exported,
    open_target,
    predict_files,
)
from keras_transfer.inference.writers import write_predictions
from keras_transfer.specs import DataSpec, RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.registry import describe_task
from keras_transfer.tasks.single_label import SingleLabel
from pipelines import arguments, predict

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(classifier, class_names, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its SavedModel in export/1 and its .keras file beside a contract in formats/1."""
    run = RunFolder.create(tmp_path_factory.mktemp("saved_models") / "run")
    spec = RunSpec(data=DataSpec(image_size=32, resize="pad", max_megapixels=1.0))
    run.write_json("spec.json", spec_to_dict(spec))
    run.write_class_names(class_names)
    run.write_json("task.json", describe_task(SingleLabel(tuple(class_names))))
    with run.replacing("model.keras") as path:
        classifier.save(path)
    contract = Contract.of(spec, SingleLabel(tuple(class_names)))
    export_saved_model(as_trained(classifier), run.path / "export" / "1", contract)
    (run.path / "formats" / "1").mkdir(parents=True)
    contract.write(run.path / "formats" / "1")
    shutil.copy(run.model_file, run.path / "formats" / "1")
    return run.path


def test_runs_and_artefacts_predict_alike(folder: Path, photos: Path):
    files = sorted(photos.iterdir())
    run, *others = [
        list(predict_files(open_target(folder / part), files, batch_size=8))
        for part in ("", "export/1", "formats/1/model.keras")
    ]
    assert all(isinstance(row, Prediction) for row in run)
    for other in others:
        assert [row.label for row in other] == [row.label for row in run]
        for row, truth in zip(other, run, strict=True):
            np.testing.assert_allclose(row.outputs, truth.outputs, atol=1e-5)


def test_targets_are_told_apart_by_their_weights_and_their_contract(folder: Path, tmp_path: Path):
    parts = ("", "export/1", "formats/1/model.keras")
    before = {part: identify(open_target(folder / part)) for part in parts}
    assert before[""] == before[parts[2]] != before[parts[1]]
    copy = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert {part: identify(open_target(copy / part)) for part in parts} == before
    terms = copy / "formats" / "1" / "contract.json"
    terms.write_text(terms.read_text().replace('"pad"', '"crop"'))
    assert identify(open_target(copy / parts[2])) != before[parts[2]]


def test_what_is_no_target_is_refused(folder: Path, tmp_path: Path):
    for nothing in (tmp_path, tmp_path / "gone", folder / "class_names.json"):
        with pytest.raises(RunError, match="is not a run folder or an exported model"):
            open_target(nothing)
    with pytest.raises(RunError, match="has no contract next to it"):
        open_target(folder / "model.keras")


def test_predict_runs_an_artefact_and_resumes_after_a_kill(
    folder: Path, photos: Path, tmp_path: Path, capsys
):
    output = tmp_path / "out.csv"
    words = [str(folder / "export" / "1"), str(photos), "--output", str(output)]
    assert predict.main(words) == 0
    whole = output.read_text(encoding="utf-8")
    assert len(whole.splitlines()) == 37
    assert predict.main(words) == arguments.USER_ERROR
    assert "exists already" in capsys.readouterr().err
    # As a kill leaves it: twelve rows, and half of another.
    words[-1] = str(tmp_path / "b.csv")
    target = open_target(folder / "export" / "1")
    with pytest.raises(KeyboardInterrupt):
        write_predictions(
            _interrupted,
            sorted(photos.iterdir()),
            tmp_path / "b.csv",
            task=target.contract.restored_task,
            target=identify(target),
        )
    lines = whole.splitlines(keepends=True)
    torn = "".join(lines[:13]) + lines[13][:20]
    (tmp_path / "b.csv.partial").write_text(torn, encoding="utf-8")
    assert predict.main(words) == arguments.USER_ERROR
    assert "--resume" in capsys.readouterr().err
    assert predict.main([*words, "--resume"]) == 0
    assert "12 rows had been predicted before" in capsys.readouterr().out
    again = (tmp_path / "b.csv").read_text(encoding="utf-8")
    # Other batches round their last digits otherwise.
    assert [row.split(",")[:2] for row in again.splitlines()] == [
        row.split(",")[:2] for row in whole.splitlines()
    ]


def _interrupted(files: Iterator[Path]) -> Iterator[Prediction]:
    raise KeyboardInterrupt
    yield  # makes it a generator


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files(folder: Path, tmp_path: Path):
    pytest.importorskip("pyarrow")
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("only Linux tells the resident memory of a process")
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        Image.fromarray(np.full((16, 16, 3), 60 * number, np.uint8)).save(file)
    target = open_target(folder / "export" / "1")
    resident: list[int] = []

    def many() -> Iterator[Path]:
        for number, file in enumerate(itertools.cycle([*files, tmp_path / "gone.png"])):
            if number in (2_000, 10_000):
                line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
                resident.append(int(line.split()[1]))
            if number == 10_000:
                return
            yield file

    summary = write_predictions(
        lambda paths: predict_files(target, paths),
        many(),
        tmp_path / "out.parquet",
        task=target.contract.restored_task,
    )
    assert (summary.num_predicted, summary.num_bad) == (8_000, 2_000)
    # 8,000 rows of plain Python objects would be more than this.
    assert resident[1] - resident[0] < 5_000, resident


def test_few_predictions_are_printed_and_nothing_is_written(folder, photos, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    first = sorted(photos.iterdir())[0]
    before = sorted(folder.rglob("*"))
    assert predict.main([str(folder), str(first), str(broken)]) == arguments.UNREAD
    shown = capsys.readouterr()
    said = " ".join(shown.out.split())
    (expected,) = predict_files(open_target(folder), [first])
    best, second = np.argsort(-expected.outputs)[:2]
    names, task = expected.task.names, expected.task
    assert first.name in said
    assert f"{names[best]} {task.format_output(expected.outputs[best])}, {names[second]}" in said
    assert shown.err.startswith(f"{broken} was not predicted: ")
    assert "broken.jpg" not in said
    assert sorted(folder.rglob("*")) == before


def test_files_of_which_none_is_an_image_are_an_error(folder, tmp_path, capsys):
    text, gone = tmp_path / "README.md", tmp_path / "gone.jpg"
    text.write_text("# no image")
    gone.write_bytes(b"")
    assert predict.main([str(folder), str(text)]) == arguments.USER_ERROR
    assert f"error: {text} cannot be read as an image" in capsys.readouterr().err
    assert predict.main([str(folder), str(text), str(gone)]) == arguments.USER_ERROR
    assert "error: none of the 2 files can be read as an image" in capsys.readouterr().err
    table = str(tmp_path / "all.csv")
    assert predict.main([str(folder), str(text), "--output", table]) == arguments.UNREAD


def test_printed_predictions_come_from_the_newest_float32_export(folder, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    newer = Path(shutil.copytree(copy / "export" / "1", copy / "export" / "2"))
    assert open_exported(copy).path == newer
    terms = newer / "contract.json"
    terms.write_text(terms.read_text().replace('"float32"', '"bfloat16"'))
    assert open_exported(copy).path == copy / "export" / "1"
    # A SavedModel is opened as it is, and a run without one by Keras.
    assert open_exported(newer).path == newer
    shutil.rmtree(copy / "export")
    monkeypatch.setattr(prediction, "load_run", lambda path: f"loaded {path.name}")
    assert open_exported(copy) == "loaded run"


def test_a_prediction_waits_for_no_package_that_only_training_needs():
    code = (
        "import sys\n"
        "from keras_transfer.devices import speed_up_imports\n"
        "speed_up_imports()\n"
        "import keras_transfer.inference.prediction, keras_transfer.tasks.registry as tasks\n"
        "tasks.register_layers()\n"
        "late = {'sklearn', 'pandas', 'scipy.stats', 'scipy.optimize'} & {*sys.modules}\n"
        "assert not late, late"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_many_predictions_and_those_to_be_resumed_need_a_file(folder, photos, capsys):
    assert len(list(photos.iterdir())) > 20
    assert predict.main([str(folder), str(photos)]) == arguments.USER_ERROR
    assert "--output predictions.csv" in capsys.readouterr().err
    assert predict.main([str(folder), str(photos), "--resume"]) == arguments.USER_ERROR
    assert "--output predictions.csv" in capsys.readouterr().err


def test_a_search_folder_is_refused_with_its_run(tmp_path):
    for name in ("spec.json", "search.json"):
        (tmp_path / name).write_text("{}")
    for opened in (prediction.load_run, prediction.open_target):
        with pytest.raises(RunError, match=r"is a search folder; its run is .*winner"):
            opened(tmp_path)
