"""Auto: the best model within a time budget, from a folder of images to a run folder.

    python -m pipelines.auto my_images time_budget=10m
    python -m pipelines.auto my_images time_budget=1h max_latency_ms=20 max_size_mb=15
    python -m pipelines.auto my_images 'backbones=["efficientnet_lite0", "resnet50"]'

Trunks whose weights are on this machine are compared by cross-validation of a solved head, the
fastest first; then 4 views of each image with 1; then fine-tuning with the head alone. Nothing is
started unless it is predicted to fit in front of the final run. Ctrl-C ends the search, and the
best model so far is finished. The result is an ordinary run folder with auto.json and auto.md.
"""

import argparse
import sys
from collections.abc import Sequence

from keras_transfer.backbones.early_checks import check_early
from keras_transfer.config import divide, parse_assignments
from keras_transfer.devices import native_log_to
from keras_transfer.experiments.auto.budget import Budget
from keras_transfer.fields import build
from keras_transfer.specs import AutoSpec, RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run
from pipelines.arguments import add_spec_arguments, main_of, make_parser, read_source


def _parser() -> argparse.ArgumentParser:
    own = "fields of auto", AutoSpec
    parser = make_parser("auto", str(__doc__), fields=True, own=own)
    add_spec_arguments(parser, fields="fields of auto and of the run to change")
    parser.add_argument("--output", metavar="DIR", help="run folder (default: saved_models/<name>)")
    return parser


def read_words(source: str, words: Sequence[str]) -> tuple[RunSpec, AutoSpec]:
    """The run's spec and that of auto; a field that both have belongs to auto.

    Raises:
        SpecError: a field is unknown, has a wrong type or is out of range.
    """
    own, others = divide(parse_assignments(words), AutoSpec)
    auto = build(AutoSpec, own, "", "auto")
    return read_source(source, others), auto


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    spec, auto = read_words(arguments.source, arguments.overrides)
    check_early(spec, arguments.output)
    budget = Budget.start(auto.time_budget)
    run = start_run(spec, output=arguments.output, suffix="")
    with native_log_to(run.log_file):
        _search(spec, auto, run, budget)


# It imports TensorFlow when it runs, so that its start-up output goes to the log.
def _search(spec: RunSpec, auto: AutoSpec, run: RunFolder, budget: Budget) -> None:
    from keras_transfer.experiments.auto.report import show_auto, write_auto
    from keras_transfer.experiments.auto.search import run_auto
    from keras_transfer.reporting.reporter import TerminalReporter

    terminal = TerminalReporter()
    found = run_auto(spec, auto, run, budget=budget, reporter=terminal)
    write_auto(found)
    show_auto(found, terminal)


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
