"""Encoding and separator of a CSV file, found from its first line."""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NAMES: Final = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_MARKS: Final = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_START_BYTES: Final = 1024


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written; `num_skipped` lines precede the column names."""

    encoding: str
    separator: str
    num_skipped: int

    def notes(self, name: str) -> list[str]:
        """A sentence where the file `name` is no comma-separated text in UTF-8."""
        parts = []
        if self.separator != ",":
            parts.append(f"separated by {_NAMES[self.separator]}s")
        if not self.encoding.startswith("utf-8"):
            parts.append(f"in {self.encoding.upper()}")
        return [f"{name} is read as text {' '.join(parts)}"] if parts else []


def find_dialect(file: Path, columns: Collection[str]) -> Dialect:
    """The encoding by the first bytes, the separator as the one that gives the named columns.

    Raises:
        OSError, UnicodeDecodeError: the first line cannot be read.
    """
    with file.open("rb") as stream:
        encoding = _encoding(stream.read(_START_BYTES))
    num_blank = 0
    with file.open(encoding=encoding, newline="") as text:
        while (first := text.readline()) and not first.strip():
            num_blank += 1
        # Excel's own first line, such as 'sep=;'.
        stated = first.strip().lower().removeprefix("sep=")
        is_statement = first.strip().lower().startswith("sep=") and stated in ("", *_NAMES)
        names = text.readline() if is_statement else first
    if is_statement:
        return Dialect(encoding, stated or "\t", num_blank + 1)
    cells = {
        separator: {cell.strip() for cell in next(csv.reader([names], delimiter=separator), [])}
        for separator in _NAMES
    }
    return Dialect(
        encoding,
        max(cells, key=lambda separator: (cells[separator] >= {*columns}, len(cells[separator]))),
        num_blank,
    )


def _encoding(start: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    # Without a mark, half of the bytes of Latin letters in UTF-16 are zeros.
    if start[1:2] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if start[:1] == b"\0" else "utf-8-sig"
