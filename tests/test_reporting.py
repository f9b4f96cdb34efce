"""Reports: texts are never read as markup, tables keep their cells in every format."""

from io import StringIO

import pytest
from rich.console import Console

from keras_transfer.reporting.numbers import fixed, percent, percent_range, three_digits
from keras_transfer.reporting.reporter import PrefixedReporter, TerminalReporter
from keras_transfer.reporting.tables import Table

TABLE = Table(
    "Run", ["phase", "accuracy", "note"], [["a|b", "97.1", "x\ny"], ["<b>[c]", "–", ""]], "95 %"
)


def _terminal() -> tuple[TerminalReporter, StringIO]:
    text = StringIO()
    return TerminalReporter(Console(file=text, width=100)), text


def test_names_in_square_brackets_are_text_not_markup():
    terminal, text = _terminal()
    terminal.info("left out: photos/[bold]cat[1].jpg")
    assert "photos/[bold]cat[1].jpg" in text.getvalue()


def test_further_lines_of_a_sentence_hang():
    terminal, text = _terminal()
    terminal.info("word " * 50 + "photos/[bold]cat.jpg")
    lines = text.getvalue().splitlines()
    assert [line[:3] for line in lines] == ["• w", "  w", "  w"]
    assert max(map(len, lines)) <= 100
    assert text.getvalue().split() == ["•", *["word"] * 50, "photos/[bold]cat.jpg"]


def test_table_shows_every_cell_and_its_caption():
    terminal, text = _terminal()
    terminal.table("Run", ["phase", "accuracy"], [["frozen", "97.1 % [95, 98]"]], caption="95 %")
    for part in ("Run", "phase", "frozen", "97.1 % [95, 98]", "95 %"):
        assert part in text.getvalue()


WIDE = Table(
    "Compression",
    ["", "accuracy in %", "agrees, %", "MB", "ms for 1", "ms for 8", "MB, gzip", "parameters"],
    [
        ["original", "83.3\n60.8–94.2", "100.0", "13.81", "25.0", "123.4", "12.22", "23,353,392"],
        ["low_rank+channels+onnx_int8", "82.2", "99.0", "3.81", "5.0", "23.4", "2.22", "3,353,392"],
    ],
)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_wide_table_breaks_no_figure_and_repeats_the_names_below(width):
    text = StringIO()
    TerminalReporter(Console(file=text, width=width)).show(WIDE)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = text.getvalue().split()
    for row in WIDE.rows:
        for cell in row[1:]:
            assert set(cell.split("\n")) <= set(words)
    tables = sum("───" in line for line in lines)
    assert words.count("original") == tables
    assert (tables == 1) == (width >= 80)


def test_names_are_broken_after_their_parts():
    text = StringIO()
    TerminalReporter(Console(file=text, width=40)).show(WIDE)
    assert "low_rank+channels+" in text.getvalue().split()


def test_counting_passes_items_on_and_counts_them():
    seen = []
    items = list(TerminalReporter.counted("abc", lambda done, total: seen.append((done, total))))
    assert items == ["a", "b", "c"]
    assert seen == [(1, 0), (2, 0), (3, 0)]


def test_markdown_has_a_line_for_each_row():
    assert TABLE.markdown().splitlines() == [
        "| phase | accuracy | note |",
        "| --- | ---: | ---: |",
        "| a\\|b | 97.1 | x y |",
        "| \\<b>[c] | – |  |",
    ]


def test_html_escapes_texts_and_knows_columns_of_numbers():
    html = TABLE.html(row_classes=["best", ""])
    assert "&lt;b&gt;[c]" in html
    assert '<tr class="best"><td class="">a|b</td><td class="number">97.1</td>' in html
    assert html.count('class="number"') == 3


def test_other_trainings_show_their_progress_under_their_name_and_only_log_sentences(caplog):
    terminal, text = _terminal()
    aside = PrefixedReporter(terminal, "fold 2")
    with caplog.at_level("INFO", "keras_transfer"), aside.progress("reading") as count:
        aside.info("done")
        count(1, 2)
    assert caplog.messages == ["fold 2: done"]
    assert "done" not in text.getvalue()


@pytest.mark.parametrize(
    ("text", "expected"),
    [(fixed(-0.04), "0.0"), (fixed(-1.26), "−1.3"), (fixed(0.0, signed=True), "±0.0")]
    + [(percent(0.0123, signed=True), "+1.2"), (percent_range(0.95, 0.9825), "95.0–98.2")]
    + [(three_digits(0.03891), "0.0389"), (three_digits(1204.4), "1,204")],
)
def test_numbers_have_real_minus_signs_and_no_negative_zero(text, expected):
    assert text == expected
