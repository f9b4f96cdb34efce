"""The names on the command line."""

import pytest

from keras_transfer.errors import ExportError
from keras_transfer.export.formats.registry import (
    FORMATS,
    Format,
    Kind,
    check_libraries,
    parse_formats,
)


def test_all_names_every_format_and_a_list_keeps_the_order_of_the_table():
    assert parse_formats("all") == tuple(FORMATS.values())
    chosen = parse_formats(" keras,onnx , litert_int8,onnx")
    assert [entry.name for entry in chosen] == ["onnx", "litert_int8", "keras"]


@pytest.mark.parametrize(
    ("text", "part"), [("litert_in8", "litert_int8"), ("onx,keras", "onnx"), (" , ", "all")]
)
def test_unknown_names_are_refused_with_the_nearest_one(text: str, part: str):
    reason = "is empty" if part == "all" else "has a format that does not exist"
    with pytest.raises(ExportError, match=f"--formats {reason}") as failure:
        parse_formats(text)
    assert part in failure.value.fix


def test_a_missing_library_is_named_with_the_extra_that_brings_it():
    kind = Kind(module="odd_format", runtime="odd", libraries=("no_such_library",))
    entry = Format("odd", "m.odd", "float32", kind)
    with pytest.raises(ExportError, match="odd cannot be written") as failure:
        check_libraries([entry])
    assert "no_such_library" in failure.value.received
    assert '".[formats]"' in failure.value.fix


def test_files_of_formats_are_all_different():
    assert len({entry.file for entry in FORMATS.values()}) == len(FORMATS)
