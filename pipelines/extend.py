"""Extend: a finished run with more images, of new classes or of those that it has.

    python -m pipelines.extend saved_models/my_photos new_photos
    python -m pipelines.extend saved_models/my_photos new_photos --output saved_models/more

The run is the backbone of a new one, whose head is solved on the images of both; old images keep
their splits. The new run's folder also has extension.json, with what old classes lose. All images
are listed in a CSV file next to it.
"""

import argparse
import sys
from collections.abc import Sequence

from keras_transfer.config import parse_assignments
from keras_transfer.devices import native_log_to
from pipelines.arguments import RESUMABLE, main_of, make_parser, scratch_log


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("extend", str(__doc__))
    parser.add_argument("run", metavar="RUN", help="run folder, such as saved_models/my_photos")
    parser.add_argument("images", metavar="IMAGES", help="folder of class folders, or CSV file")
    parser.add_argument(
        "fields", nargs="*", metavar="key=value", help="fields of the new run to change"
    )
    parser.add_argument("--output", metavar="DIR", help="run folder (default: saved_models/<name>)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    fields = parse_assignments(arguments.fields)
    with native_log_to(scratch_log()):
        from keras_transfer.experiments.extension import extend_run
        from keras_transfer.experiments.summary import show_next
        from keras_transfer.reporting.reporter import TerminalReporter

        terminal = TerminalReporter()
        found = extend_run(
            arguments.run,
            arguments.images,
            fields,
            output=arguments.output,
            resume=arguments.resume,
            reporter=terminal,
        )
        for sentence in found.describe():
            terminal.info(sentence)
        show_next(found.extended.folder.path, terminal)


main = main_of(_run, stopped=RESUMABLE)

if __name__ == "__main__":
    sys.exit(main())
