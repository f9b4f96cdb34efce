"""Evaluate: metrics of a run on its own test split, or on other labelled images.

python -m pipelines.evaluate saved_models/my_photos
python -m pipelines.evaluate saved_models/my_photos new_photos --output new.json
python -m pipelines.evaluate saved_models/my_photos data.path=/where/my_photos/are/now
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_transfer.backbones.early_checks import check_images
from keras_transfer.devices import native_log_to
from keras_transfer.errors import SpecError, check_all
from keras_transfer.storage.atomic import check_vacant, replacing
from keras_transfer.storage.run_folder import RunFolder
from pipelines.arguments import divide_place, main_of, make_parser, scratch_log


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("evaluate", str(__doc__))
    parser.add_argument("run", metavar="RUN", help="run folder, such as saved_models/my_photos")
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="*",
        help="folder of class sub-folders, or a CSV file; by default the run's test split, whose "
        "images data.path=… finds if they were moved",
    )
    parser.add_argument(
        "--include-training",
        action="store_true",
        help="keep images of DATA that the run was trained on; by default they are left out",
    )
    parser.add_argument("--output", metavar="FILE", help="JSON file for the metrics")
    return parser


def _divide(words: Sequence[str]) -> tuple[str | None, str | None]:
    """The other images, and the place of the run's own."""
    data, place = divide_place(words, others="one folder or CSV file")
    if len(data) > 1:
        raise SpecError(
            "evaluate takes one folder or CSV file of other images",
            expected="RUN, or RUN DATA",
            received=" ".join(data),
            fix="evaluate them one after the other",
        )
    return (data[0] if data else None), place


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    data, place = _divide(arguments.data)
    check_all(
        lambda: RunFolder.open(arguments.run),
        *([] if data is None else [lambda: check_images(data, "DATA")]),
        *([lambda: check_vacant(Path(arguments.output))] if arguments.output else []),
    )
    with native_log_to(scratch_log()):
        from keras_transfer.experiments.evaluation import evaluate_run
        from keras_transfer.experiments.summary import show_evaluation
        from keras_transfer.reporting.reporter import TerminalReporter

        terminal = TerminalReporter()
        evaluation = evaluate_run(
            arguments.run,
            data,
            reporter=terminal,
            moved_to=place,
            include_training=arguments.include_training,
        )
        show_evaluation(evaluation, terminal)
        if arguments.output:
            with replacing(Path(arguments.output)) as path:
                path.write_text(json.dumps(evaluation.to_dict(), indent=2) + "\n")
            terminal.info(f"Metrics: {arguments.output}")


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
