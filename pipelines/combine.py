"""Combine: several finished runs become one, and the report says whether that pays.

    python -m pipelines.combine saved_models/a saved_models/b saved_models/c
    python -m pipelines.combine saved_models/a saved_models/b how=soup --output saved_models/soup

An ensemble has the mean of the runs' probabilities, a soup the mean of the weights of runs of one
network. Runs are taken while the loss on validation falls. They have the same classes and splits,
and a soup's were trained with training.refit=false. The result is an ordinary run; its folder also
has combination.json and combination.md, which compare it with each of the runs.
"""

import argparse
import sys
from collections.abc import Sequence

from keras_transfer.devices import native_log_to
from pipelines.arguments import main_of, make_parser, scratch_log

_HOW = "how="


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("combine", str(__doc__))
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN",
        help="run folders, such as saved_models/my_photos; and how=ensemble (default) or how=soup",
    )
    parser.add_argument("--output", metavar="DIR", help="run folder (default: saved_models/<name>)")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    hows = [word.removeprefix(_HOW) for word in arguments.words if word.startswith(_HOW)]
    runs = [word for word in arguments.words if not word.startswith(_HOW)]
    with native_log_to(scratch_log()):
        from keras_transfer.experiments.combine.combination import combine_runs
        from keras_transfer.experiments.combine.report import show_combination
        from keras_transfer.reporting.reporter import TerminalReporter

        terminal = TerminalReporter()
        how = hows[-1] if hows else "ensemble"
        found = combine_runs(runs, how=how, output=arguments.output, reporter=terminal)
        show_combination(found, terminal)


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
