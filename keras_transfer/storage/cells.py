"""Cells of CSV files: texts that spreadsheets would compute as formulas stay texts."""

import re
from typing import Any, Final

_FORMULA: Final = re.compile(
    r"'*(?![-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$)[=+\-@＝＋－＠\t\r\n]", re.IGNORECASE
)


def spreadsheet_cell(value: Any) -> Any:
    """A value for a CSV file: a text that spreadsheets take for a formula begins with a '."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def cell_text(cell: str) -> str:
    """The text that `spreadsheet_cell` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
