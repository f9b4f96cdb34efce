"""Tables for terminals, Markdown and HTML."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from keras_transfer.errors import printable

_NUMBER = re.compile(r"[-−+±]?[\d,]*\.?\d+(e[-+]?\d+)?( %)?|[-+]?(nan|inf)|–|", re.IGNORECASE)
_BREAKS = re.compile(r"(?<=[ +,/])")
_AROUND = 3
"""Characters around the text of a column."""
_LEAST_NAME, _LONG_CELL = 16, 30
"""Characters up to which names, and other cells, are not broken into lines on terminals."""
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

    def rich(self, width: int) -> Group:
        """For a terminal of this many columns.

        Columns that do not fit stand in a further table below, after the first column again.
        """
        for around in (_AROUND, _AROUND - 1, _AROUND):
            blocks = list(self._blocks(width, around))
            if len(blocks) == 1:
                break  # Else without the narrower gaps, which do not help.
        tables = [self._block(columns, around) for columns in blocks]
        if self.title:
            tables[0].title = _text(self.title, "table.title")
        if self.caption:
            tables[-1].caption = _text(self.caption, "table.caption")
        return Group(*tables)

    def _block(self, widths: Mapping[int, int], around: int) -> RichTable:
        """The columns with these numbers, each as wide as is given."""
        table = RichTable(
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, around - 2),
        )
        for column, width in widths.items():
            # Long names are wrapped, not cut, because cut names could be equal.
            table.add_column(
                _text(_wrapped(self.header[column], width)),
                justify="right" if column else "left",
                width=width,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*(_text(_wrapped(row[column], w)) for column, w in widths.items()))
        return table

    def _blocks(self, width: int, around: int) -> Iterator[dict[int, int]]:
        """The columns of each table, with their widths; the first column is in all of them."""
        texts = list(zip(self.header, *self.rows, strict=True))
        least = [_least(column, is_name=number == 0) for number, column in enumerate(texts)]
        whole = [max(len(line) for text in column for line in _lines(text)) for column in texts]
        least[0] = max(least[0], min(whole[0], _LEAST_NAME))
        blocks = _divide(least, width, around, most=len(least))
        # As many columns in each, where that takes no more tables.
        even = _divide(least, width, around, most=-(-(len(least) - 1) // len(blocks)))
        for block in even if len(even) == len(blocks) else blocks:
            free = width - 1 - sum(least[column] + around for column in block)
            widths = {}
            for column in block:
                more = min(max(free, 0), whole[column] - least[column])
                widths[column], free = least[column] + more, free - more
            yield widths

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


def _divide(least: Sequence[int], width: int, around: int, *, most: int) -> list[list[int]]:
    """The numbers of the columns in each block, the first and at most as many others."""
    blocks = [[0]]
    for column in range(1, len(least)):
        needed = sum(least[one] + around for one in (*blocks[-1], column)) + 1
        if len(blocks[-1]) > most or (needed > width and len(blocks[-1]) > 1):
            blocks.append([0])
        blocks[-1].append(column)
    return blocks


def _lines(text: str) -> list[str]:
    return printable(text, keep="\n").split("\n")


def _least(column: Sequence[str], *, is_name: bool) -> int:
    """Width of a column in which no figure, and no word of its header, is broken."""
    header, *cells = column
    words = [word for text in (column if is_name else [header]) for word in _pieces(text)]
    lines = [] if is_name else [line for cell in cells for line in _lines(cell)]
    longest = max(map(len, [*words, ""]), default=1)
    figures = [len(line) if len(line) <= _LONG_CELL else _LONG_CELL for line in lines]
    return max(1, min(longest, _LONG_CELL), *figures)


def _pieces(text: str) -> list[str]:
    """Parts of a text between which a line may end, without the spaces at their ends."""
    return [piece.strip() for line in _lines(text) for piece in _BREAKS.split(line)]


def _wrapped(text: str, width: int) -> str:
    """The text with lines that end after spaces and other signs where they are too long."""
    lines = []
    for line in _lines(text):
        current = ""
        for piece in _BREAKS.split(line) if len(line) > width else [line]:
            if current and len((current + piece).rstrip()) > width:
                lines.append(current.rstrip())
                current = ""
            current += piece
        lines.append(current.rstrip())
    return "\n".join(lines)


def _text(text: str, style: str = "") -> Text:
    """Plain text for a terminal: markup and control characters have no effect."""
    return Text(printable(text, keep="\n"), style)


def breakable(name: str) -> Markup:
    """HTML of a name with line breaks allowed after dots and underscores; copying is unchanged."""
    pause = Markup("<wbr>")
    return escape(name).replace(".", "." + pause).replace("_", "_" + pause)
