"""The measurement runs, and its figures are consistent."""

import json
import shutil
from pathlib import Path

import pytest

from pipelines import serve


@pytest.mark.slow
def test_measuring_writes_consistent_figures(
    run_folder: Path, photos: Path, tmp_path: Path, capsys
):
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    words = [str(run), "--measure", "--images", str(photos), "--seconds", "0.2"]
    assert serve.main(words) == 0
    shown = capsys.readouterr().out
    assert "99th percentile" in shown
    figures = json.loads((run / "serving.json").read_text())
    assert figures["num_failures"] == 0
    assert len(figures["shares"]) == 7
    assert 0 < figures["unloaded_median"] < figures["half_load_p99"] * 10
    assert figures["half_load_rate"] * 2 == figures["loaded_rate"] > 0
    assert figures["stretch"] == figures["half_load_p99"] / figures["unloaded_median"]


def test_measuring_without_images_names_the_missing_file(run_folder: Path, capsys):
    assert serve.main([str(run_folder), "--measure"]) == 2
    assert "splits.json" in capsys.readouterr().err
