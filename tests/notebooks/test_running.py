"""Notebooks run from the first cell to the last, on one device, and what they leave."""

import pytest
from running_notebooks import (
    SMALL,
    check_archive,
    check_look,
    check_run,
    check_search,
    count_images,
    execute,
    read_json,
    words,
)

QUICK = ("data", "model", "training")
"""Fields of `SMALL` for a run whose only phase solves the head."""


@pytest.mark.slow
def test_the_quickstart_trains_on_files_arrays_and_a_table_and_predicts(tmp_path):
    quick = {name: value for name, value in SMALL.items() if name.split(".")[0] in QUICK}
    quick["phases"] = [{"name": "frozen", "method": "exact"}]
    notebook = execute("quickstart", tmp_path, CHANGES=SMALL, QUICK=quick)
    check_look(notebook, predict=1)
    saved = tmp_path / "saved_models"
    check_run(saved / "quickstart", num_test=90)
    check_archive(saved / "quickstart.zip", "model.keras", "figures/mistakes.png")
    # The look had stored the pixels: the run decoded nothing again.
    assert read_json(saved / "quickstart" / "cache.json")["images_decoded"] == 0
    # The table has the files of the arrays: the second run computed no features.
    assert "Prediction('2'" in words(notebook, "arrays")
    assert read_json(saved / "images" / "cache.json")["views_computed"] > 0
    assert read_json(saved / "images-2" / "cache.json")["views_computed"] == 0


@pytest.mark.slow
def test_the_search_ranks_compares_and_keeps_a_winner(tmp_path):
    space = {"search.space.model.dropout": {"values": [0.0, 0.1]}}
    backbones = ["small", {"backbone": "small", "last_stage": "stage1"}]
    notebook = execute(
        "search",
        tmp_path,
        CHANGES=SMALL,
        BACKBONES=backbones,
        SPACE=space,
        TUNER="grid",
        TRIALS=2,
        REFITS=0,
    )
    saved = tmp_path / "saved_models"
    ranking = read_json(saved / "rank-quickstart" / "rank.json")
    assert {one["last_stage"] for one in ranking["candidates"]} == {"stage1", "stage2"}
    assert all(one["scores"]["probe"]["value"] > 0.3 for one in ranking["candidates"])
    check_search(saved / "quickstart-search", num_trials=2)
    assert "The best trial is" in words(notebook, "search")
    assert "[model]" in words(notebook, "spec")
    assert "Trial 2 Complete" in words(notebook, "stock")
    assert [count_images(notebook, ident) for ident in ("rank", "winner")] == [1, 2]
    check_archive(saved / "quickstart-search.zip", "search.html", "winner/export/1/saved_model.pb")
