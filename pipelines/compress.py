"""Compress: a finished run with a smaller, faster network, and the report on what it costs.

    python -m pipelines.compress saved_models/my_photos channels=0.3
    python -m pipelines.compress saved_models/my_photos low_rank=0.005 features=0.25
    python -m pipelines.compress saved_models/my_photos channels=0.5 --distill --formats onnx_int8

The steps are taken in their order on the run's trunk, which is fitted to the whole one on training
images. On the smaller trunk the run's phases train a head, and what else they say; with --distill
they learn from the run. The result is an ordinary run, which can be compressed again,
exported and quantised; its folder also has compression.json, compression.md and compression.png,
which compare all runs that it was made of, and their other formats.
"""

import argparse
import sys
from collections.abc import Sequence

from keras_transfer.compression.registry import STEPS, parse_chain
from keras_transfer.config import parse_assignments
from keras_transfer.devices import native_log_to
from keras_transfer.errors import check_all
from keras_transfer.export.formats.registry import check_formats, parse_formats
from keras_transfer.storage.run_folder import RunFolder
from pipelines.arguments import RESUMABLE, main_of, make_parser, scratch_log


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("compress", str(__doc__))
    parser.own = tuple(STEPS)
    parser.add_argument("run", metavar="RUN", help="run folder, such as saved_models/my_photos")
    parser.add_argument(
        "words",
        nargs="+",
        metavar="step=amount",
        help="; ".join(f"{step.name}: {step.amount}" for step in STEPS.values())
        + "; fields of the new run, such as phases.1.epochs=3",
    )
    parser.add_argument(
        "--distill", action="store_true", help="learn from the run, not from labels"
    )
    parser.add_argument(
        "--formats",
        metavar="LIST",
        default="",
        help="other formats to write as well and to compare, such as onnx_int8,onnx_mixed",
    )
    parser.add_argument("--output", metavar="DIR", help="run folder (default: saved_models/<name>)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    chain, fields = parse_chain(parse_assignments(arguments.words))
    check_all(
        lambda: RunFolder.open(arguments.run),
        *([lambda: check_formats(arguments.formats)] if arguments.formats else []),
    )
    formats = parse_formats(arguments.formats) if arguments.formats else ()
    with native_log_to(scratch_log()):
        from keras_transfer.experiments.compress.compression import compress_run
        from keras_transfer.experiments.compress.report import show_compression
        from keras_transfer.reporting.reporter import TerminalReporter

        terminal = TerminalReporter()
        found = compress_run(
            arguments.run,
            chain,
            fields,
            is_distilled=arguments.distill,
            formats=formats,
            output=arguments.output,
            resume=arguments.resume,
            reporter=terminal,
        )
        show_compression(found, terminal)


main = main_of(_run, stopped=RESUMABLE)

if __name__ == "__main__":
    sys.exit(main())
