"""The measurement runs, and its figures are consistent."""

import json
import shutil
from pathlib import Path

import pytest

from pipelines import serve
from pipelines.benchmarks import server


@pytest.mark.slow
def test_measuring_writes_consistent_figures(
    served_run: Path, photos: Path, tmp_path: Path, capsys
):
    run = Path(shutil.copytree(served_run, tmp_path / "run"))
    words = [str(run), "--measure", "--images", str(photos), "--seconds", "0.4"]
    assert serve.main([*words, "--runtime", "onnx"]) == 0
    shown = capsys.readouterr().out
    assert "Serving, computed by onnx" in shown
    assert "99th percentile" in shown
    figures = json.loads((run / "serving.json").read_text())
    assert figures["network"] == "onnx"
    assert figures["num_failures"] == 0
    assert len(figures["shares"]) == len(figures["gains"]) == 7
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
