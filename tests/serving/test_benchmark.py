"""The measurement runs, and its figures are consistent."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from forked_process import forking

from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model.network import as_trained
from keras_transfer.export.saved_model.writer import export_saved_model
from keras_transfer.serving.settings import Settings
from keras_transfer.specs import DataSpec, RunSpec
from keras_transfer.tasks.regression import Regression
from pipelines import serve
from pipelines.benchmarks import server


@pytest.fixture(autouse=True)
def _forked_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "subprocess", forking(server))


@pytest.mark.slow
def test_measuring_writes_consistent_figures(
    served_run: Path, photos: Path, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr(server, "NUM_ROUNDS", 2)  # Each keeps all processors busy for 6 seconds.
    run = Path(shutil.copytree(served_run, tmp_path / "run"))
    words = [str(run), "--measure", "--images", str(photos), "--seconds", "1"]
    assert serve.main([*words, "--runtime", "onnx"]) == 0
    shown = capsys.readouterr().out
    assert "Serving, computed by onnx" in shown
    assert "99th percentile" in shown
    figures = json.loads((run / "serving.json").read_text())
    assert figures["network"] == "onnx"
    assert figures["num_failures"] == 0
    assert len(figures["shares"]) == len(figures["gains"]) == 2
    assert min(figures["gains"]) <= figures["gain"] <= max(figures["gains"])
    assert 0 < figures["unloaded_median"] < figures["half_load_p99"] * 10
    assert figures["half_load_rate"] * 2 == figures["loaded_rate"] > 0
    assert figures["stretch"] == figures["half_load_p99"] / figures["unloaded_median"]


def test_measuring_without_images_names_the_missing_file(run_folder: Path, capsys):
    assert serve.main([str(run_folder), "--measure"]) == 2
    assert "splits.json" in capsys.readouterr().err


@pytest.mark.slow
def test_measuring_a_format_that_was_not_written_ends_with_its_error(
    run_folder: Path, photos: Path, capsys
):
    words = [str(run_folder), "--measure", "--images", str(photos), "--runtime", "onnx"]
    assert serve.main(words) == 2
    assert "onnx cannot serve" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Serving version 1 of temples\n", ("temples", None)),
        ("Serving version 12 of my.photos-2, with\nonnx: the fastest", ("my.photos-2", "onnx")),
        ("Serving version 1 of temples, with\n", None),
    ],
)
def test_what_a_server_says_is_read_though_it_is_wrapped(said, expected):
    found = server.SERVED.search(said)
    assert (found and found.groups()) == expected


def test_the_measured_server_has_all_settings_but_the_address():
    settings = Settings(
        folder=Path("export"),
        name="-temples",
        host="0.0.0.0",
        port=8502,
        allow_hosts="a.example",
        allow_origins="*",
        runtime="onnx",
        max_batch=3,
        max_wait_ms=4.5,
        max_queue=5,
        max_instances=6,
        max_body_megabytes=7.5,
        max_megapixels=8.5,
        max_request_megapixels=9.5,
        request_seconds=10.5,
        poll_seconds=11.5,
        grace_seconds=12,
    )
    for expected in (settings, Settings(folder=Path("export"))):
        given = vars(serve._parser().parse_args(server.server_words(expected)))
        words = {field.name: given.get(field.name) for field in dataclasses.fields(Settings)}
        found = Settings(**words | {"folder": Path(given["run"])})
        assert found == dataclasses.replace(expected, host="127.0.0.1", port=0)


def test_a_network_of_numbers_is_called_directly(make_classifier, photos: Path, tmp_path: Path):
    task = Regression(("height", "width"), means=(10, 3000), deviations=(2, 500))
    spec = RunSpec(data=DataSpec(image_size=32, resize="crop"))
    folder = tmp_path / "1"
    export_saved_model(as_trained(make_classifier(task.names)), folder, Contract.of(spec, task))
    assert server._Direct(folder, sorted(photos.glob("*.jpg"))).rate(0) > 0
