"""Notebooks run from the first cell to the last, on one device, and what they leave."""

import pytest
from running_notebooks import (
    SMALL,
    check_archive,
    check_course,
    check_search,
    count_images,
    execute,
    read_json,
    words,
)


@pytest.mark.slow
def test_the_quickstart_trains_tunes_and_exports(tmp_path):
    notebook = execute("quickstart", tmp_path, CHANGES=SMALL, TRIALS=1)
    check_course(notebook, tmp_path, num_trials=1)
    assert "all 120 90 90" in words(notebook, "preview")
    # The look had stored the pixels: the run decoded nothing again.
    run = tmp_path / "saved_models" / "quickstart"
    assert read_json(run / "cache.json")["images_decoded"] == 0


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
    assert [count_images(notebook, ident) for ident in ("preview", "rank", "winner")] == [1, 1, 2]
    check_archive(saved / "quickstart-search.zip", "search.html", "winner/export/1/saved_model.pb")
