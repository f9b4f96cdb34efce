"""Tables for terminals, Markdown and HTML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from keras_transfer.errors import printable

_NUMBER = re.compile(r"[-−+±]?[\d,]*\.?\d+(e[-+]?\d+)?( %)?|[-+]?(nan|inf)|–|", re.IGNORECASE)
_LONG = 60
"""Length of a cell's text from which it is broken into lines in HTML."""


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns. The first column is text, the others are figures.

    Args:
        rows: each with as many texts as `header`; a text may have several lines.
        caption: shown below on terminals and above in HTML; Markdown leaves it out.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(
            title=_text(self.title, "table.title"),
            caption=_text(self.caption, "table.caption") if self.caption else None,
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
        )
        for number, name in enumerate(self.header):
            # Long names are wrapped, not cut, because cut names could be equal.
            table.add_column(
                _text(name), justify="left" if number == 0 else "right", overflow="fold"
            )
        for row in self.rows:
            table.add_row(*map(_text, row))
        return table

    def markdown(self) -> str:
        """Header and rows; every row is one line."""
        ruler = ["---", *["---:"] * (len(self.header) - 1)]
        lines = [
            [re.sub(r"[\\|<]", r"\\\g<0>", printable(cell.replace("\n", " "))) for cell in row]
            for row in (self.header, *self.rows)
        ]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], ruler, *lines[1:]))

    def html(self, *, row_classes: Sequence[str] = ()) -> Markup:
        """Header and rows; the page sorts them when a heading is clicked.

        Args:
            row_classes: a CSS class for each row: "best", "failed" or "".
        """
        classes = [self._class(column) for column in range(len(self.header))]
        headings = "".join(
            Markup('<th class="{}"><button type="button">{}</button></th>').format(
                kind, breakable(name)
            )
            for kind, name in zip(classes, self.header, strict=True)
        )
        rows = "".join(
            Markup('<tr class="{}">{}</tr>\n').format(of_row, self._cells(row, classes))
            for of_row, row in zip(row_classes or [""] * len(self.rows), self.rows, strict=True)
        )
        return Markup("<table><thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody></table>").format(
            Markup(headings), Markup(rows)
        )

    def _class(self, column: int) -> str:
        """ "number" for a column of single numbers, which are sorted as such."""
        texts = [row[column] for row in self.rows]
        is_number = column > 0 and any(texts) and all(map(_NUMBER.fullmatch, texts))
        return "number" if is_number else ""

    @staticmethod
    def _cells(row: Sequence[str], classes: Sequence[str]) -> Markup:
        return Markup("").join(
            Markup('<td class="{}">{}</td>').format("long" if len(text) > _LONG else kind, text)
            for text, kind in zip(row, classes, strict=True)
        )


def _text(text: str, style: str = "") -> Text:
    """Plain text for a terminal: markup and control characters have no effect."""
    return Text(printable(text, keep="\n"), style)


def breakable(name: str) -> Markup:
    """HTML of a name with line breaks allowed after dots and underscores; copying is unchanged."""
    pause = Markup("<wbr>")
    return escape(name).replace(".", "." + pause).replace("_", "_" + pause)
