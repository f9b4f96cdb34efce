"""Extract: compute and store the features of a training, with many processes or machines.

    python -m pipelines.extract my_photos --workers 4
    python -m pipelines.extract saved_models/my_photos --workers 4
    RAY_ADDRESS=10.0.0.1:6379 python -m pipelines.extract /shared/photos \\
        cache.folder=/shared/features --workers 64

A training with the same spec then reads them instead of running the frozen layers. Workers are
processes of a Ray cluster: the one at RAY_ADDRESS, whose machines share folders, or this machine.
"""

import argparse
import sys
from collections.abc import Sequence

from keras_transfer.backbones.early_checks import check_early
from keras_transfer.devices import native_log_to
from keras_transfer.errors import check_all
from keras_transfer.scale.cluster import check_ray
from pipelines.arguments import (
    add_spec_arguments,
    main_of,
    make_parser,
    positive,
    read_spec,
    scratch_log,
)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("extract", str(__doc__), fields=True)
    add_spec_arguments(parser)
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes of a Ray cluster (default: this process, without Ray)",
    )
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    spec = read_spec(arguments)
    check_all(lambda: check_early(spec), *([check_ray] if arguments.workers else []))
    with native_log_to(scratch_log()):
        from keras_transfer.reporting.reporter import TerminalReporter
        from keras_transfer.scale.extraction import store_features

        terminal = TerminalReporter()
        extraction_stats = store_features(spec, num_workers=arguments.workers, reporter=terminal)
        start = ", including the start of the workers" if arguments.workers else ""
        for stats in extraction_stats:
            if stats.rate:
                terminal.info(f"{stats.rate:,.0f} views/s{start}.")
        if not extraction_stats:
            terminal.info("Nothing is stored: the first phase trains on images.")


main = main_of(_run, stopped="the features stored so far are kept")

if __name__ == "__main__":
    sys.exit(main())
