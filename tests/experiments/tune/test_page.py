"""The page of a search holds all of it, in one file that no text in it can break."""

import re
from html.parser import HTMLParser

import pytest
from made_search import CHOICES, SCALES, made_trial, stage_decides

from keras_transfer.experiments.tune.page import write_page
from keras_transfer.experiments.tune.record import Search
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.task import Monitor

VOID = {"meta", "wbr", "br", "link", "input"}
NASTY = '<script>alert("&amp;")</script>'


class _Reader(HTMLParser):
    """Rows of the table, and whether every element is closed by its own end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[dict] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.seen.append(tag)
        self.addresses += [given[key] for key in ("src", "href") if key in given]
        if tag == "tr" and "tbody" in self.open:
            self.rows.append({"class": given["class"], "cells": []})
        if tag == "td":
            self.rows[-1]["cells"].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "td":
            self.rows[-1]["cells"][-1] += text


def _write(folder, trials, **changes) -> tuple[str, _Reader]:
    entries = {
        "title": "Search <flowers>",
        "sentences": ["It went well & fast.", "It was not cheap."],
        "run_facts": [("trials", f"{len(trials)}"), ("a <label>", "a <text>")],
    }
    of_search = {
        "scales": SCALES,
        "choices": CHOICES,
        "objective": "val_score",
        "monitor": Monitor("accuracy", "max", is_share=True),
        "winner": max((t for t in trials if t.score), key=lambda trial: trial.score).name,
    }
    search = Search(trials, **{**of_search, **changes})
    write_page(RunFolder(folder), search, **entries)
    assert [file.name for file in folder.iterdir()] == ["search.html"]
    page = (folder / "search.html").read_text(encoding="utf-8")
    reader = _Reader()
    reader.feed(page)
    assert not reader.open
    return page, reader


def test_page_has_every_trial_the_best_first_and_failed_ones_with_their_cause(tmp_path):
    trials = stage_decides(9)
    values = {**trials[0].values, "phases.1.unfreeze": "stage5"}
    trials += [made_trial(9, values, None, cause=NASTY), made_trial(10, {}, float("nan"))]
    page, reader = _write(tmp_path, trials)
    names = [row["cells"][0] for row in reader.rows]
    assert sorted(names) == [f"{number:04}" for number in range(11)]
    scores = [float(row["cells"][2].removesuffix(" %")) for row in reader.rows[:9]]
    assert scores == sorted(scores, reverse=True)
    assert [row["class"] for row in reader.rows] == ["best"] + [""] * 8 + ["failed"] * 2
    broken = reader.rows[9]
    assert (broken["cells"][1], broken["cells"][-1]) == ("failed", NASTY)
    assert (broken["cells"][2], reader.rows[10]["cells"][2]) == ("–", "nan")
    assert NASTY not in page
    assert "Search &lt;flowers&gt;" in page
    assert "a &lt;label&gt;" in page
    assert "It went well &amp; fast." in page
    assert page.count("<svg") == 3 + ("cross-validated" in page)


def test_page_needs_nothing_but_itself(tmp_path):
    page, reader = _write(tmp_path, stage_decides(20))
    assert page.count("<svg") == 4
    assert all(address.startswith("#") for address in reader.addresses)
    assert {"link", "img", "iframe"}.isdisjoint(reader.seen)
    assert reader.seen.count("script") == 1
    assert not re.search(r"@import|fetch\(|url\((?!#)", page)
    names = re.findall(r'\bid="([^"]*)"', page)
    assert len(names) == len(set(names))


def test_a_single_trial_has_its_page_and_importance_is_refused_in_words(tmp_path):
    page, reader = _write(tmp_path, stage_decides(1))
    assert len(reader.rows) == 1
    assert page.count("<svg") == 3
    assert "too few" in page


def test_nasty_names_and_values_are_text(tmp_path):
    name = "data.<b>&_name_that_is_long_beyond_all_reason_and_goes_on"
    trials = [made_trial(index, {name: NASTY}, 0.5 + index / 10) for index in range(3)]
    page, reader = _write(tmp_path, trials, scales={name: "choice"}, choices={name: [NASTY, 1]})
    assert "<b>" not in page
    assert NASTY not in page
    assert all(row["cells"][4] == NASTY for row in reader.rows)


def test_a_winner_that_is_no_scored_trial_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0007"):
        _write(tmp_path, stage_decides(2), winner="0007")
    assert not list(tmp_path.iterdir())
