"""A small network from its run folder to files of other formats, compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from labelled import read_records

from keras_transfer.config import spec_to_dict
from keras_transfer.data.audit import audit
from keras_transfer.data.splits import make_splits, manifest
from keras_transfer.errors import DataError, ExportError
from keras_transfer.export.conversion import convert_run, read_split
from keras_transfer.export.formats import agreement as module
from keras_transfer.export.formats.registry import FORMATS, check_libraries
from keras_transfer.export.formats.runtimes import open_runtime
from keras_transfer.export.verification import Timing
from keras_transfer.inference.prediction import load_run
from keras_transfer.models.classifier import build_classifier
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, DataSpec, ModelSpec, RunSpec
from keras_transfer.storage.cache import open_cache
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.registry import describe_task
from keras_transfer.tasks.single_label import SingleLabel
from pipelines import arguments, export

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


FEW_CALLS = Timing(calls={1: 1, 8: 1, 32: 1}, least_rounds=2, most_rounds=2, seconds=1.0)


@pytest.fixture(scope="module")
def run(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """What a training would leave, its weights still random."""
    try:
        check_libraries(FORMATS.values())
    except ExportError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("converted")
    spec = RunSpec(
        name="digits",
        data=DataSpec(path=str(digits_folder), image_size=32),
        model=ModelSpec(backbone="small", weights="none"),
        cache=CacheSpec(folder=str(folder / "cache")),
    )
    records = read_records(spec.data)
    with open_cache(spec, reporter=SilentReporter()) as cache:
        records = audit(records, spec.data, cache=cache, reporter=SilentReporter()).records
    names = records.class_names
    made = RunFolder.create(folder / "run")
    made.write_json("spec.json", spec_to_dict(spec))
    made.write_class_names(names)
    made.write_json("task.json", describe_task(SingleLabel(tuple(names))))
    made.write_json("splits.json", manifest(make_splits(records, spec.data, seed=0), records))
    classifier = build_classifier(spec.model, image_size=32, task=SingleLabel(tuple(names)), seed=0)
    with made.replacing("model.keras") as path:
        classifier.save(path)
    return made


@pytest.mark.slow
def test_export_writes_formats_beside_the_export_and_compares_them(
    run: RunFolder, capsys, monkeypatch
):
    monkeypatch.setattr(module, "_TIMING", FEW_CALLS)
    words = [str(run.path), "--formats", "litert_float32,openvino_int8,keras", "--compare"]
    assert export.main(words) == 0
    shown = capsys.readouterr().out
    assert "Writing openvino_int8 …" in shown
    assert "Batches of 1: " in shown
    folder = run.path / "formats" / "1"
    content = json.loads((folder / "formats.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in content["formats"]}
    assert list(rows) == [
        "model.export",
        "model.export oneDNN",
        "SavedModel",
        "litert_float32",
        "openvino_int8",
        "keras",
    ]
    for name in ("model.export", "SavedModel", "litert_float32", "keras"):
        row = rows[name]
        assert row["refusal"] == ""
        assert row["agreement"]["label_agreement"] == 1
        assert row["agreement"]["max_abs_difference"] <= 1e-5
        assert list(row["latencies"]) == ["1", "8", "32"]
        assert 0 < row["latencies"]["1"]["p50"] <= row["latencies"]["1"]["p95"]
        assert row["images_per_second"]["32"] > 0
        assert row["megabytes"] > 0
    table = (folder / "formats.md").read_text(encoding="utf-8")
    assert all(f"| {name} " in table for name in rows)
    run_contract = load_run(run.path).contract
    runtime = open_runtime(folder / "model_float32.tflite")
    assert runtime.contract == run_contract
    images = read_split(load_run(run.path), "test", 40, reporter=SilentReporter())
    np.testing.assert_allclose(
        runtime(images.pixels), load_run(run.path)(images.pixels), rtol=0, atol=1e-5
    )
    # Nothing is left of what was refused, and nothing half written.
    kept = {"contract.json", "class_names.json", "labels.txt", "formats.json", "formats.md"}
    kept |= {"model_float32.tflite", "model.keras", "checksums.json"}
    if not rows["openvino_int8"]["refusal"]:
        kept |= {"model_int8.xml", "model_int8.bin"}
    assert {path.name for path in folder.iterdir()} == kept
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def test_ranges_come_from_the_training_split_and_images_must_be_the_same(
    run: RunFolder, digits_folder: Path
):
    loaded = load_run(run.path)
    listed = run.read_json("splits.json")["rows"]["train"]
    shown = read_split(loaded, "train", 64, reporter=SilentReporter())
    assert shown.pixels.shape == (64, 32, 32, 3)
    assert set(shown.digests) <= {entry["digest"] for entry in listed}
    assert len(set(shown.values)) > 5
    victim = digits_folder / listed[0]["path"]
    before = victim.read_bytes()
    try:
        victim.write_bytes((digits_folder / listed[1]["path"]).read_bytes())
        with pytest.raises(DataError, match="images of the run are not below"):
            read_split(loaded, "train", 64, reporter=SilentReporter())
    finally:
        victim.write_bytes(before)


def test_unknown_formats_and_comparing_nothing_are_refused_before_anything_is_written(
    run: RunFolder, capsys
):
    before = sorted(path.name for path in run.path.iterdir())
    assert export.main([str(run.path), "--formats", "onxx"]) == arguments.USER_ERROR
    assert "did you mean 'onnx'" in capsys.readouterr().err
    assert export.main([str(run.path), "--compare"]) == arguments.USER_ERROR
    assert sorted(path.name for path in run.path.iterdir()) == before


@pytest.mark.slow
def test_nothing_appears_where_no_format_agrees(run: RunFolder, tmp_path: Path):
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    model = load_run(copy).model
    logits = model.get_layer("logits")
    logits.set_weights([np.full(w.shape, np.nan, np.float32) for w in logits.get_weights()])
    model.save(copy / "model.keras")
    with pytest.raises(ExportError, match="no format agrees with the model") as failure:
        convert_run(
            copy,
            copy / "export" / "7",
            [FORMATS["keras"]],
            compare=False,
            reporter=SilentReporter(),
        )
    assert "NaN or Inf" in failure.value.received
    assert not (copy / "formats" / "7").exists()
