"""A look at the pictures before any training: what can be read, how it is split, its views."""

from collections import Counter
from pathlib import Path

from keras_transfer.data.sources import read_records
from keras_transfer.data.splits import NAMES
from keras_transfer.devices import set_up
from keras_transfer.experiments.run import Data, load_data
from keras_transfer.experiments.run_report import draw_some_views
from keras_transfer.experiments.session import open_store, settle
from keras_transfer.reporting.reporter import Narrator, Terminal
from keras_transfer.specs import RunSpec
from keras_transfer.storage.atomic import replacing


def look(spec: RunSpec, figure: Path, *, narrator: Narrator | None = None) -> Data:
    """Read, check and split the pictures as a run of the spec will, and draw some in their views.

    Pixels are stored, so that the run decodes nothing again.

    Args:
        figure: PNG to write, in place of an earlier one.
        narrator: who is told of bad files, splits and views; by default the terminal.

    Raises:
        DataError, SpecError: the pictures cannot be used as they are.
        RunError: the figure or the pixels cannot be written.
    """
    narrator = narrator or Terminal()
    set_up(spec.devices, seed=spec.seed)
    records = read_records(spec.data)
    settled = settle(spec, len(records.items), narrator=narrator)
    with open_store(settled, narrator=narrator) as store:
        data = load_data(settled, records, store=store, narrator=narrator)
        with replacing(figure) as path:
            draw_some_views(path, spec, data.records, data.splits, data.examples)
    return data


def show_data(data: Data, terminal: Terminal) -> None:
    """Print how many pictures of each class are in each split."""
    counts = [
        Counter(data.records.items[row].label for row in getattr(data.splits, name))
        for name in NAMES
    ]
    rows = [[name, *(f"{count[name]:,}" for count in counts)] for name in data.records.class_names]
    rows.append(["all", *(f"{count.total():,}" for count in counts)])
    terminal.table("Pictures", ["class", "train", "validation", "test"], rows)
