"""Race: compare a plain Keras recipe with this package on your images and machine.

    python -m pipelines.race quickstart
    python -m pipelines.race my_photos --seeds 5 --also fast --also scikit-learn

Both train the same trunk and head through the same phases on the same splits, each training in a
process of its own, in alternating order over the seeds. --also trains further contestants: the
plain recipe in half precision, this package with the views and phases of the presets fast and
best, or scikit-learn's logistic regression on the features of the plain images.

Writes race.json, race.md and race.png: seconds by stage, test accuracy with intervals, peak memory,
bytes stored, and the rate of extraction with the limits of the machine.
"""

import sys
from collections.abc import Sequence

from keras_transfer.devices import native_log_to
from keras_transfer.storage.run_folder import RunFolder, next_free
from keras_transfer.storage.run_start import DEFAULT_PARENT, vacated_on_refusal
from pipelines.arguments import add_spec_arguments, main_of, make_parser, positive, read_spec


def _run(argv: Sequence[str] | None) -> None:
    parser = make_parser("race", str(__doc__))
    add_spec_arguments(parser)
    parser.add_argument(
        "--seeds", type=positive, default=3, metavar="N", help="seeds to train with (default: 3)"
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        choices=["mixed_bfloat16", "mixed_float16", "fast", "best", "scikit-learn"],
        help="train this contestant as well; may be repeated",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder to write to (default: saved_models/race-<name>)"
    )
    arguments = parser.parse_intermixed_args(argv)
    spec = read_spec(arguments)
    folder = RunFolder.create(arguments.output or next_free(DEFAULT_PARENT, f"race-{spec.name}"))
    with native_log_to(folder.log_file), vacated_on_refusal(folder):
        from keras_transfer.reporting.reporter import TerminalReporter
        from pipelines.benchmarks.race.race import race
        from pipelines.benchmarks.race.report import write_race

        terminal = TerminalReporter()
        result = race(
            spec,
            num_seeds=arguments.seeds,
            also=arguments.also,
            folder=folder.path,
            reporter=terminal,
        )
        report = write_race(result, folder)
        terminal.show(report.table)
        terminal.info(report.headline)
        terminal.info(f"Written to {folder.path}: race.json, race.md and race.png")


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
