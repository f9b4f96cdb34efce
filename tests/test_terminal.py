"""What people read: file names with brackets survive, tables hold their rows."""

from io import StringIO

from rich.console import Console

from keras_transfer.reporting.reporter import TerminalReporter


def _terminal() -> tuple[TerminalReporter, StringIO]:
    text = StringIO()
    return TerminalReporter(Console(file=text, width=100)), text


def test_names_in_square_brackets_are_text_not_markup():
    terminal, text = _terminal()
    terminal.info("left out: photos/[bold]cat[1].jpg")
    assert "photos/[bold]cat[1].jpg" in text.getvalue()


def test_table_shows_every_cell_and_its_caption():
    terminal, text = _terminal()
    terminal.table("Run", ["phase", "accuracy"], [["frozen", "97.1 % [95, 98]"]], caption="95 %")
    for part in ("Run", "phase", "frozen", "97.1 % [95, 98]", "95 %"):
        assert part in text.getvalue()


def test_counting_passes_items_on_and_counts_them():
    seen = []
    items = list(TerminalReporter.counted("abc", lambda done, total: seen.append((done, total))))
    assert items == ["a", "b", "c"]
    assert seen == [(1, 0), (2, 0), (3, 0)]
