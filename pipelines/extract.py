"""Extract: store what a training will read of the frozen layers, with many processes or machines.

    python -m pipelines.extract flowers data.path=my_photos --workers 4
    python -m pipelines.extract saved_models/flowers --workers 4
    RAY_ADDRESS=10.0.0.1:6379 python -m pipelines.extract flowers data.path=/shared/photos \\
        cache.folder=/shared/features --workers 64

A training with the same spec then computes none of it. Workers are processes of a Ray cluster: of
the one that RAY_ADDRESS names, whose machines share folders, or of this machine.
"""

import sys
from collections.abc import Sequence

from keras_transfer.devices import native_log_to
from pipelines.arguments import (
    add_spec_arguments,
    main_of,
    make_parser,
    positive,
    read_spec,
    scratch_log,
)


def _run(argv: Sequence[str] | None) -> None:
    parser = make_parser("extract", str(__doc__), fields=True)
    add_spec_arguments(parser)
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes that compute (default: this one, without Ray)",
    )
    arguments = parser.parse_intermixed_args(argv)
    spec = read_spec(arguments)
    with native_log_to(scratch_log()):
        from keras_transfer.reporting.reporter import TerminalReporter
        from keras_transfer.scale.extraction import fill_store

        terminal = TerminalReporter()
        extraction_stats = fill_store(spec, num_workers=arguments.workers, reporter=terminal)
        start = ", the workers' start included" if arguments.workers else ""
        for stats in extraction_stats:
            if stats.rate:
                terminal.info(f"That is {stats.rate:,.0f} views/s{start}.")
        if not extraction_stats:
            terminal.info("Nothing is stored: the first phase trains on images.")


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
