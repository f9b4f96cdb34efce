"""Preview of the data before training: readable files, splits and views."""

from pathlib import Path

from keras_transfer.data.splits import NAMES
from keras_transfer.experiments.run_report import draw_some_views
from keras_transfer.experiments.session import Data, open_session
from keras_transfer.reporting.reporter import Reporter, TerminalReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.atomic import replacing


def preview(spec: RunSpec, figure: Path, *, reporter: Reporter | None = None) -> Data:
    """Read, check and split the images as a run of the spec will, and draw views of some.

    Decoded images are cached, so that the run decodes none again.

    Args:
        figure: PNG file to write; an existing one is replaced.
        reporter: shows unreadable files, splits and views; by default on the terminal.

    Raises:
        DataError, SpecError: the images cannot be used.
        RunError: the figure or the decoded images cannot be written.
    """
    with open_session(spec, reporter=reporter or TerminalReporter()) as session:
        data = session.data
        with replacing(figure) as path:
            draw_some_views(path, spec, data.records, data.splits, data.examples)
    return data


def show_data(data: Data, terminal: TerminalReporter) -> None:
    """Print how many images of each class, or other stratum, are in each split."""
    targets, splits = data.records.targets, [getattr(data.splits, name) for name in NAMES]
    counts = [targets.strata[rows].sum(axis=0) for rows in splits]
    cells = [
        [name, *(f"{count[number]:,}" for count in counts)]
        for number, name in enumerate(targets.strata_names)
    ]
    cells.append(["all", *(f"{len(rows):,}" for rows in splits)])
    terminal.table("Images", [targets.kind, "train", "validation", "test"], cells)
