"""A look at the images before any training: what can be read, how it is split, its views."""

from collections import Counter
from pathlib import Path

from keras_transfer.data.splits import NAMES
from keras_transfer.devices import set_up
from keras_transfer.experiments.run import Data, load_data
from keras_transfer.experiments.run_report import draw_some_views
from keras_transfer.experiments.session import resolve_cache_mode
from keras_transfer.reporting.reporter import Reporter, TerminalReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.atomic import replacing
from keras_transfer.storage.cache import open_cache
from keras_transfer.tasks.registry import read_task


def preview(spec: RunSpec, figure: Path, *, reporter: Reporter | None = None) -> Data:
    """Read, check and split the images as a run of the spec will, and draw some in their views.

    Pixels are stored, so that the run decodes nothing again.

    Args:
        figure: PNG to write, in place of an earlier one.
        reporter: who is told of bad files, splits and views; by default the terminal.

    Raises:
        DataError, SpecError: the images cannot be used as they are.
        RunError: the figure or the pixels cannot be written.
    """
    reporter = reporter or TerminalReporter()
    set_up(spec.devices, seed=spec.seed)
    _, records = read_task(spec)
    settled = resolve_cache_mode(spec, len(records.items), reporter=reporter)
    with open_cache(settled, reporter=reporter) as cache:
        data = load_data(settled, records, cache=cache, reporter=reporter)
        with replacing(figure) as path:
            draw_some_views(path, spec, data.records, data.splits, data.examples)
    return data


def show_data(data: Data, terminal: TerminalReporter) -> None:
    """Print how many images of each class are in each split."""
    counts = [
        Counter(data.records.items[row].label for row in getattr(data.splits, name))
        for name in NAMES
    ]
    rows = [[name, *(f"{count[name]:,}" for count in counts)] for name in data.records.class_names]
    rows.append(["all", *(f"{count.total():,}" for count in counts)])
    terminal.table("Images", ["class", "train", "validation", "test"], rows)
