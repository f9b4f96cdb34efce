"""Explain: show which parts of images the predictions of a run depend on.

python -m pipelines.explain saved_models/my_photos photo.jpg more_photos/ --output explanations
python -m pipelines.explain saved_models/my_photos photo.jpg --class tulips --output tulips

FOLDER gets explain.html to open in a browser, explain.csv, and a heat map for each image.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_transfer.devices import native_log_to
from keras_transfer.errors import check_all
from keras_transfer.inference.paths import expand_paths, path_checks
from keras_transfer.storage.atomic import check_vacant
from keras_transfer.storage.run_folder import RunFolder
from pipelines.arguments import main_of, make_parser, scratch_log


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("explain", str(__doc__))
    parser.add_argument("run", metavar="RUN", help="run folder, such as saved_models/my_photos")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="file, folder or - for stdin")
    parser.add_argument(
        "--output", metavar="FOLDER", default="explanations", help="new folder for the results"
    )
    parser.add_argument(
        "--class",
        metavar="NAME",
        dest="class_name",
        help="class or other output to explain (default: the highest)",
    )
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    output = Path(arguments.output)
    check_all(
        lambda: check_vacant(output),
        lambda: RunFolder.open(arguments.run),
        *path_checks(arguments.paths),
    )
    with native_log_to(scratch_log()):
        from keras_transfer.data.records import counted
        from keras_transfer.inference.explanation import explain_files
        from keras_transfer.inference.explanation_files import PAGE, write_explanations
        from keras_transfer.inference.prediction import load_run
        from keras_transfer.reporting.reporter import TerminalReporter

        terminal = TerminalReporter()
        files = expand_paths(arguments.paths, sys.stdin)
        loaded = load_run(arguments.run)
        with terminal.progress("explaining") as count:
            rows = explain_files(loaded, files, class_name=arguments.class_name)
            summary = write_explanations(
                terminal.counted(rows, count),
                output,
                name=loaded.spec.name,
                task=loaded.task,
            )
        labels = [[name, f"{number:,}"] for name, number in summary.num_by_label.items()]
        title = f"Images: {summary.num_explained:,}"
        if any(summary.num_by_label.values()) or not summary.num_explained:
            terminal.table(title, ["label", "images"], labels)
        else:
            terminal.info(f"{title}.")
        if summary.num_bad:
            words = counted(summary.num_bad, "file", "files")
            terminal.info(f"{words} could not be read: see the error column.")
        terminal.info(f"Report: {output / PAGE}")


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
