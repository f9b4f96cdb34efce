"""Names with control characters, markup and formulas are refused before training, or escaped."""

import csv
import io
import logging

import pytest
from rich.console import Console

from keras_transfer.config import load_spec, make_spec, override
from keras_transfer.data.records import Record
from keras_transfer.errors import DataError, SpecError, printable
from keras_transfer.reporting.reporter import TerminalReporter
from keras_transfer.reporting.tables import Table
from keras_transfer.specs import PretrainSpec, RunSpec
from keras_transfer.storage.cells import cell_text, spreadsheet_cell
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.registry import make_task

HARMLESS = [
    "[bold]x[/bold]",
    ":smile:",
    "[/]",
    "a\\",
    "<b>&</b>",
    "it's $(x)",
    "-1",
    "ÄÖ 猫",
    "{x}",
]
FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-2-x", "@SUM(A1)", "=", "＝1", "'=1", "''@x"]
UNUSABLE = ["a\nb", "c\rd", "a\x1b[31mb", "\x00", "a\u2028b", "a\u202eb", "\udcff", " ", "x" * 300]


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a/b", "a\\b", "..", ".x", "", "a\nb", "x" * 300]
)
@pytest.mark.parametrize("kind", [RunSpec, PretrainSpec])
def test_the_name_of_a_run_stays_in_its_folder(kind, name):
    with pytest.raises(SpecError, match="cannot name a run") as raised:
        override(kind(), {"name": name})
    assert raised.value.fix


def test_a_spec_file_cannot_name_another_folder(tmp_path):
    file = tmp_path / "spec.toml"
    file.write_text('name = "../../x"\n')
    with pytest.raises(SpecError, match="cannot name a run"):
        load_spec(file)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("it's [my] set", "it's [my] set"),
        ("a\nb\x1b", "a-b-"),
        (".photos", "photos"),
        ("..", "run"),
    ],
)
def test_a_run_is_called_like_its_folder_as_far_as_possible(folder, name, tmp_path):
    assert make_spec(tmp_path / folder).name == name


def test_all_class_names_that_cannot_be_exported_are_refused_at_once():
    def task_of(*labels: str):
        spec = override(RunSpec(), {"data.path": "t.csv"})
        return make_task(spec, [Record(f"{n}.png", (label,)) for n, label in enumerate(labels)])

    assert set(task_of(*HARMLESS, *FORMULAS).names) == {*HARMLESS, *FORMULAS}
    for name in UNUSABLE:
        with pytest.raises(DataError, match="cannot be exported"):
            task_of("a", name)
    with pytest.raises(DataError) as raised:
        task_of("a", *UNUSABLE[:3])
    assert all(repr(name)[1:-1] in raised.value.received for name in UNUSABLE[:3])


def test_errors_show_no_control_characters():
    error = DataError("a\x1b[2Jb", received="\udcff\u202ex", fix="one\ntwo")
    assert str(error).splitlines()[0] == r"a\x1b[2Jb."
    assert error.received == r"\udcff\u202ex"
    assert error.fix == "one\ntwo"


@pytest.mark.parametrize("name", [*HARMLESS, *UNUSABLE[:7]])
def test_the_terminal_and_the_log_show_names_as_plain_text(name, caplog):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    reporter = TerminalReporter(console)
    with caplog.at_level(logging.INFO, "keras_transfer"):
        reporter.info(f"read {name}.")
    reporter.table(name, ["class", name], [[name, "1"]], caption=name)
    with reporter.training_progress(name, 1, 1), reporter.progress(name):
        pass
    shown = printable(name)
    assert caplog.messages == [f"read {shown}."]
    lines = console.file.getvalue()
    assert f"• read {shown}." in lines
    assert name == shown or name not in lines.replace("\x1b[?25", "")


def test_markdown_tables_keep_one_row_a_line_and_no_html():
    text = Table("t", ["class", "n"], [["a|b\\|<i>\x1b\n", "1"]]).markdown()
    assert text.splitlines()[2] == r"| a\|b\\\|\<i>\\x1b  | 1 |"


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_are_text_in_csv_files_and_read_back(name, tmp_path):
    RunFolder(tmp_path).write_rows("t.csv", ["path", name], [[name, 1.5]])
    with (tmp_path / "t.csv").open(newline="") as file:
        header, row = csv.reader(file)
    assert header[1] == row[0] == spreadsheet_cell(name) == f"'{name}"
    assert row[1] == "1.5"
    assert cell_text(row[0]) == name


@pytest.mark.parametrize("cell", ["-1", "+2.5e-7", "daisy", "a=b", "'quoted'", "-.5", 3, None])
def test_numbers_and_words_are_written_unchanged(cell):
    assert spreadsheet_cell(cell) == cell
    assert not isinstance(cell, str) or cell_text(cell) == cell
