"""The preview: what it draws and counts, and that a later run decodes nothing again."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from keras_transfer.data.splits import NAMES
from keras_transfer.experiments.preview import preview, show_data
from keras_transfer.reporting.reporter import SilentReporter, TerminalReporter
from keras_transfer.specs import CacheSpec, DataSpec, RunSpec, ViewSpec


@pytest.fixture
def spec(digits_folder, tmp_path):
    return RunSpec(
        data=DataSpec(path=str(digits_folder), image_size=32, resize="squash"),
        views=ViewSpec(count=3),
        cache=CacheSpec(folder=str(tmp_path / "store")),
    )


def test_the_preview_draws_views_and_stores_what_it_decoded(spec, tmp_path):
    first = preview(spec, tmp_path / "figures" / "views.png", reporter=SilentReporter())
    again = preview(spec, tmp_path / "figures" / "views.png", reporter=SilentReporter())
    assert (first.num_decoded, again.num_decoded) == (300, 0)
    with Image.open(tmp_path / "figures" / "views.png") as figure:
        pixels = np.asarray(figure.convert("L"))
    # Six images below each other, in three views beside each other.
    assert pixels.shape[0] > 1.5 * pixels.shape[1]
    assert (pixels < 64).mean() > 0.2
    for name in NAMES:
        np.testing.assert_array_equal(getattr(first.splits, name), getattr(again.splits, name))


def test_the_table_counts_classes_in_splits(spec, tmp_path):
    data = preview(spec, tmp_path / "views.png", reporter=SilentReporter())
    written = io.StringIO()
    show_data(data, TerminalReporter(Console(file=written, width=80)))
    rows = [line.split() for line in written.getvalue().splitlines()]
    counts = {
        row[0]: [int(cell) for cell in row[1:]] for row in rows if row[1:2] and row[1].isdigit()
    }
    assert list(counts) == [*data.records.class_names, "all"]
    sizes = [len(getattr(data.splits, name)) for name in NAMES]
    assert counts.pop("all") == sizes
    np.testing.assert_array_equal(np.sum(list(counts.values()), axis=0), sizes)
