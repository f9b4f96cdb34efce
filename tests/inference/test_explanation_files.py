"""Explanations as files: overlays, table and page, by the library and by the verb."""

import csv
import dataclasses
import re
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_transfer.data.records import BadFile
from keras_transfer.errors import RunError
from keras_transfer.inference import explanation_files
from keras_transfer.inference.explanation import Explanation, explain_files
from keras_transfer.inference.explanation_files import (
    draw_overlay,
    table_columns,
    write_explanations,
)
from keras_transfer.inference.prediction import LoadedRun
from keras_transfer.tasks.single_label import SingleLabel
from pipelines import explain as explain_verb
from pipelines.arguments import USER_ERROR


class Page(HTMLParser):
    """Tags with their attributes, and all text outside of the style."""

    def __init__(self, file: Path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] != "style":
            self.text += data

    def values(self, tag: str, attribute: str) -> list[str]:
        return [
            values[attribute] for name, values in self.tags if name == tag and attribute in values
        ]


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "explain.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def made(number: int, *, names=('<b>a</b> & "b"', "c")) -> Explanation:
    return Explanation(
        path=f"<i>{number}</i>.jpg",
        task=SingleLabel(names),
        outputs=np.float32([0.6, 0.4]),
        class_index=1,
        heat=np.zeros((2, 2), np.float32),
        pixels=np.full((8, 8, 3), number % 256, np.uint8),
    )


def test_write_explanations_leaves_an_overlay_a_row_and_a_card_for_each_image(
    run: LoadedRun, photos: Path, tmp_path: Path
):
    files = [*sorted(photos.iterdir())[:9], tmp_path / "gone, really.jpg"]
    rows = list(explain_files(run, files))
    output = tmp_path / "deep" / "explanations"
    summary = write_explanations(rows, output, name="flowers", task=run.task)
    assert (summary.num_explained, summary.num_bad) == (9, 1)
    assert tuple(summary.num_by_label) == run.class_names
    table = read_table(output)
    assert table[0].keys() == dict.fromkeys(table_columns(run.task)).keys()
    assert [row["path"] for row in table] == [file.as_posix() for file in files]
    for row, explanation in zip(table[:9], rows, strict=False):
        assert (row["prediction"], row["explained"], row["error"]) == (
            explanation.label,
            explanation.label,
            "",
        )
        assert np.float32(row["confidence"]) == explanation.outputs.max()
        with Image.open(output / row["overlay"]) as overlay:
            np.testing.assert_array_equal(overlay, draw_overlay(explanation))
    assert "no such file" in table[9]["error"]
    assert table[9]["prediction"] == table[9]["overlay"] == ""
    page = Page(output / "explain.html")
    assert page.values("a", "href") == [row["overlay"] for row in table[:9]]
    assert "9 images explained" in page.text
    assert "gone, really.jpg" in page.text
    assert len(list(output.rglob("*.png"))) == 9
    assert [path.name for path in output.parent.iterdir()] == ["explanations"]


def test_page_is_one_file_and_shows_names_as_they_are(tmp_path: Path):
    write_explanations(
        [made(1), BadFile("<script>x</script>", "truncated")],
        tmp_path / "out",
        name="<u>run</u>",
        task=made(1).task,
    )
    page = Page(tmp_path / "out" / "explain.html")
    for text in (
        '<b>a</b> & "b"',
        "<i>1</i>.jpg",
        "<script>x</script>",
        "Explanations of <u>run</u>",
    ):
        assert text in page.text
    assert not {"b", "i", "u", "script", "link"} & {tag for tag, _ in page.tags}
    assert all(value.startswith("data:image/webp;base64,") for value in page.values("img", "src"))
    assert all(page.values("img", "alt"))
    assert "No part of the image is evidence for c." in page.text
    content = (tmp_path / "out" / "explain.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import", content)
    assert "prefers-color-scheme: dark" in content


def test_class_that_is_not_among_the_likeliest_is_shown_below_them(tmp_path: Path):
    names = tuple("abcdefgh")
    probabilities = np.float32([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.06, 0.04])
    row = Explanation(
        path="x.jpg",
        task=SingleLabel(names),
        outputs=probabilities,
        class_index=7,
        heat=np.eye(2, dtype=np.float32),
        pixels=made(1).pixels,
    )
    write_explanations([row], tmp_path / "out", name="run", task=row.task)
    page = Page(tmp_path / "out" / "explain.html")
    bars = [
        values["class"] for tag, values in page.tags if tag == "li" and "bar" in values["class"]
    ]
    assert bars == ["bar"] * 5 + ["bar chosen"]
    assert "4.0 %" in page.text


def test_page_and_memory_are_bounded_and_the_table_is_not(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(explanation_files, "MOST_SHOWN", 3)
    rows = (made(n) if n % 2 else BadFile(f"{n}.jpg", "empty file") for n in range(40))
    tracemalloc.start()
    write_explanations(rows, tmp_path / "out", name="run", task=made(1).task)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    page = Page(tmp_path / "out" / "explain.html")
    assert len(page.values("img", "src")) == 3
    assert "The first 3 are shown" in page.text
    assert "and 17 more in" in page.text
    assert len(read_table(tmp_path / "out")) == 40
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 20


def test_overlays_have_names_that_any_file_system_can_hold(tmp_path: Path):
    rows = [
        dataclasses.replace(
            made(1, names=("a",)), path=path, outputs=np.float32([1]), class_index=0
        )
        for path in ("photos/" + "x" * 200 + ".jpg", "äöü日本.png", "a b?*:.jpg", "a\udcff.jpg")
    ]
    write_explanations(rows, tmp_path / "out", name="run", task=made(1).task)
    names = sorted(file.name for file in (tmp_path / "out" / "overlays").iterdir())
    tails = ["x" * 60, "image", "a-b", "a"]
    assert names == [f"{n:06d}_{tail}.png" for n, tail in enumerate(tails, start=1)]
    page = Page(tmp_path / "out" / "explain.html")
    assert "äöü日本.png" in page.text


def test_write_explanations_never_overwrites_and_leaves_nothing_half_done(
    tmp_path: Path, full_disk
):
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="exists already"):
        write_explanations([made(1)], tmp_path / "out", name="run", task=made(1).task)

    def broken():
        yield made(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_explanations(broken(), tmp_path / "new", name="run", task=made(1).task)
    assert not (tmp_path / "new").exists()
    with full_disk(), pytest.raises(RunError, match="disk is full"):
        write_explanations([made(1)], tmp_path / "other", name="run", task=made(1).task)
    assert not list(tmp_path.glob("other*"))


def test_explain_verb_explains_files_folders_and_a_class_by_name(
    finished: Path, photos: Path, tmp_path: Path, capsys
):
    output = tmp_path / "out"
    (tmp_path / "notes.jpg").write_text("not an image")
    words = [str(finished), str(photos), str(tmp_path / "notes.jpg"), "--output", str(output)]
    assert explain_verb.main([*words, "--class", "naïve flower"]) == 0
    told = capsys.readouterr().out
    assert "Images: 36" in told
    assert "could not be read" in told
    table = read_table(output)
    assert {row["explained"] for row in table[:36]} == {"naïve flower"}
    assert len({row["prediction"] for row in table[:36]}) > 1
    assert table[36]["error"].startswith("not an image")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["gone.jpg"], "does not exist"),
        ([__file__, "--class", "tempel"], "did you mean 'temple'?"),
        ([__file__, "--output", "."], "exists already"),
    ],
)
def test_explain_verb_refuses_in_words_and_writes_nothing(
    words, part, finished: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert explain_verb.main([str(finished), *words]) == USER_ERROR
    assert part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
