"""Suggest: which images of a folder to label next, so that few labels gain much.

python -m pipelines.suggest saved_models/my_photos new_photos
python -m pipelines.suggest saved_models/my_photos new_photos --count 100 --output to_label.csv

Without --output the suggestions are printed. Images that the run has used are left out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_transfer.devices import native_log_to
from keras_transfer.storage.atomic import check_vacant
from pipelines.arguments import main_of, make_parser, positive, scratch_log


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("suggest", str(__doc__))
    parser.add_argument("run", metavar="RUN", help="run folder, such as saved_models/my_photos")
    parser.add_argument("folder", metavar="FOLDER", help="folder of images without labels")
    parser.add_argument(
        "--count", type=positive, default=50, help="images to suggest (default: %(default)s)"
    )
    parser.add_argument("--output", metavar="FILE", help="CSV file to write")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.output:
        check_vacant(Path(arguments.output))
    with native_log_to(scratch_log()):
        from keras_transfer.experiments.suggestion import (
            COLUMNS,
            suggest_images,
            write_suggestions,
        )
        from keras_transfer.reporting.reporter import TerminalReporter

        terminal = TerminalReporter()
        found = suggest_images(
            arguments.run, arguments.folder, count=arguments.count, reporter=terminal
        )
        if arguments.output:
            write_suggestions(found, Path(arguments.output))
            terminal.info(f"Images to label: {arguments.output}")
        else:
            rows = [one.row for one in found]
            terminal.table("Images to label", list(COLUMNS), rows)


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
