"""Label efficiency: accuracy by number of labels, for suggested and for random images.

    python -m pipelines.label_efficiency quickstart
    python -m pipelines.label_efficiency my_photos --first 4 --count 20 --rounds 9

A quarter of the images is the test set. From the others, a few of each class are labelled first.
In each round a head is solved on the labelled ones, and `--count` more are labelled: those that
`suggest` would choose, or random ones.
"""

import sys
from collections.abc import Sequence
from statistics import mean, stdev

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
    parser = make_parser("label_efficiency", str(__doc__))
    add_spec_arguments(parser)
    parser.add_argument("--first", type=positive, default=4, help="labels of each class at first")
    parser.add_argument("--count", type=positive, default=20, help="labels of each round")
    parser.add_argument("--rounds", type=positive, default=9, help="how many rounds")
    parser.add_argument("--seeds", type=positive, default=5, help="how many draws")
    arguments = parser.parse_intermixed_args(argv)
    spec = read_spec(arguments)
    with native_log_to(scratch_log()):
        from keras_transfer.reporting.reporter import TerminalReporter
        from pipelines.benchmarks.label_efficiency import measure_curves

        terminal = TerminalReporter()
        numbers, found = measure_curves(
            spec,
            first=arguments.first,
            count=arguments.count,
            rounds=arguments.rounds,
            num_seeds=arguments.seeds,
            reporter=terminal,
        )
        random, suggested = 100 * found.mean(axis=0)
        gains = (100 * (found[:, 1] - found[:, 0])[:, 1:].mean(axis=1)).tolist()
        error = f" ± {stdev(gains) / len(gains) ** 0.5:.1f}" if len(gains) > 1 else ""
        terminal.table(
            "Accuracy by number of labels, %",
            ["labels", "random", "suggested"],
            [
                [str(number), f"{one:.1f}", f"{other:.1f}"]
                for number, one, other in zip(numbers, random, suggested, strict=True)
            ],
            caption=f"means over {len(found)} draws; suggested images gain {mean(gains):+.1f}"
            f"{error} points (mean of all rounds; standard error, paired by draw)",
        )


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
