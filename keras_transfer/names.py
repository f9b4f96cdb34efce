"""Names and paths of users: which cannot be used, and how they are shown and written.

Names of classes, files and runs may hold any character that a file system or a table allows. On
terminals, in logs and on pages control characters are escaped; in tables for spreadsheets a text
that would be a formula gets an apostrophe in front.
"""

import re
from typing import Any, Final

_LONGEST: Final = 255
"""Characters of a class name: as many bytes as the name of a folder may have."""

_LONGEST_RUN: Final = 200
"""Bytes of a run's name: suffixes such as '-search-2' follow it in the name of its folder."""

# Control characters, line and paragraph separators, marks that reverse the direction of text, and
# lone surrogates, which stand for bytes of file names that are not Unicode.
_HIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_FORMULA: Final = re.compile(
    r"'*(?![-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$)[=+\-@＝＋－＠\t\r\n]", re.IGNORECASE
)


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with hidden characters but those of `keep` escaped, such as '\x1b' and '\n'."""
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def class_name_flaw(name: str) -> str:
    """Why a class cannot have this name, in a few words; '' for a name that can be used."""
    if not name.strip():
        return "nothing but spaces"
    if found := _HIDDEN.search(name):
        return f"contains {found[0]!a}"
    return f"has {len(name)} characters" if len(name) > _LONGEST else ""


def run_name_flaw(name: str) -> str:
    """Why a run cannot have this name, in a few words; '' for a name that can be used."""
    if not name.strip() or name.startswith("."):
        return "is empty or begins with a dot"
    if found := re.search(rf"[/\\]|{_HIDDEN.pattern}", name):
        return f"contains {found[0]!a}"
    length = len(name.encode())
    return f"has {length} bytes" if length > _LONGEST_RUN else ""


def run_name(text: str) -> str:
    """The nearest name of a run for the name of a folder or file; 'run' if nothing is left."""
    name = _HIDDEN.sub("-", re.sub(r"[/\\]", "-", text)).lstrip(". ").strip()
    return name.encode()[:_LONGEST_RUN].decode(errors="ignore") or "run"


def spreadsheet_cell(value: Any) -> Any:
    """A value for a CSV file: a text that spreadsheets take for a formula begins with a '."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def cell_text(cell: str) -> str:
    """The text that `spreadsheet_cell` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
