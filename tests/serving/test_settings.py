"""Settings out of range."""

from pathlib import Path

import pytest

from keras_transfer.errors import SpecError
from keras_transfer.serving.settings import Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a/b"),
        ("name", "a b"),
        ("max_body_megabytes", -5.0),
        ("max_megapixels", 0.0),
        ("request_seconds", float("nan")),
        ("poll_seconds", -1.0),
        ("max_wait_ms", -1.0),
        ("max_batch", 0),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(SpecError, match=field.replace("_", ".")):
        Settings(folder=Path("export"), **{field: value})
