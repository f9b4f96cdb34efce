"""Combine: several finished runs become one, and the report says whether that pays.

    python -m pipelines.combine saved_models/a saved_models/b saved_models/c
    python -m pipelines.combine saved_models/a saved_models/b how=soup --output saved_models/soup
    python -m pipelines.combine saved_models/frozen saved_models/tuned how=line
    python -m pipelines.combine saved_models/a saved_models/b how=add scale=0.3

An ensemble has the mean of the runs' probabilities, a soup the mean of the weights of runs of one
network, and a line the best network between two. Runs are taken while the loss on validation falls.
They have the same classes and splits; those of a soup or line were trained with
training.refit=false. how=add and how=negate move the weights of the first run by what others, which
may have other classes, changed of the same pretrained backbone. The result is an ordinary run; its
folder also has combination.json and combination.md, which compare it with each of the runs.
"""

import argparse
import sys
from collections.abc import Sequence

from keras_transfer.devices import native_log_to
from keras_transfer.errors import SpecError
from pipelines.arguments import main_of, make_parser, scratch_log

_OPTIONS = ("how", "scale")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("combine", str(__doc__))
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN",
        help="run folders, such as saved_models/my_photos; and how=ensemble (default), soup, line, "
        "add or negate; for the last two scale=0.3, or the best on validation",
    )
    parser.add_argument("--output", metavar="DIR", help="run folder (default: saved_models/<name>)")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    words = [word.partition("=") for word in arguments.words]
    options = {name: value for name, sign, value in words if sign and name in _OPTIONS}
    runs = [name + sign + value for name, sign, value in words if name not in options]
    how, scale = options.get("how", "ensemble"), _number(options.get("scale"))
    with native_log_to(scratch_log()):
        from keras_transfer.experiments.combine.combination import combine_runs
        from keras_transfer.experiments.combine.report import show_combination
        from keras_transfer.reporting.reporter import TerminalReporter

        terminal = TerminalReporter()
        found = combine_runs(runs, how=how, scale=scale, output=arguments.output, reporter=terminal)
        show_combination(found, terminal)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise SpecError(
            "the scale is not a number",
            expected="a number such as scale=0.3",
            received=f"scale={text}",
            fix="leave it out to choose it on validation images",
        ) from None


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
