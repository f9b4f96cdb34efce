"""Domain shifts: what adaptation to unlabelled images gains, and how often it chooses wrongly.

    python -m pipelines.domain_shifts quickstart --shifts contrast,noise,blur,rendered
    python -m pipelines.domain_shifts my_photos --shifts edges,colours,low_resolution
    python -m pipelines.domain_shifts my_photos --shifts edges --aligned coral,mmd,adversarial

A head is solved on 40 % of the images as they are. 30 % are shifted and used without labels, as by
`adapt`; the accuracy is that on the other 30 %, shifted as well. Nothing is trained by gradients,
but with `--aligned` the phases of the spec: on the source alone, and by method 'align'.
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from statistics import mean, stdev
from typing import TYPE_CHECKING

from keras_transfer.adaptation.registry import AUTO, SOURCE
from keras_transfer.devices import native_log_to
from pipelines.arguments import (
    add_spec_arguments,
    main_of,
    make_parser,
    positive,
    read_spec,
    scratch_log,
)

if TYPE_CHECKING:
    from keras_transfer.reporting.reporter import TerminalReporter
    from pipelines.benchmarks.adaptation import Outcome


def _run(argv: Sequence[str] | None) -> None:
    parser = make_parser("domain_shifts", str(__doc__))
    add_spec_arguments(parser)
    parser.add_argument("--shifts", default="contrast,noise,blur", help="(default: %(default)s)")
    parser.add_argument("--seeds", type=positive, default=5, help="how many divisions")
    parser.add_argument("--aligned", default="", help="distances of method 'align' to train by")
    arguments = parser.parse_intermixed_args(argv)
    spec = read_spec(arguments)
    with native_log_to(scratch_log()):
        from keras_transfer.reporting.reporter import TerminalReporter
        from pipelines.benchmarks.adaptation import measure_adaptation

        terminal = TerminalReporter()
        outcomes = measure_adaptation(
            spec,
            arguments.shifts.split(","),
            seeds=range(arguments.seeds),
            reporter=terminal,
            aligned=[name for name in arguments.aligned.split(",") if name],
        )
        for shift, group in groupby(outcomes, key=lambda one: one.shift):
            _show(shift, list(group), terminal)


def _show(shift: str, found: "list[Outcome]", terminal: "TerminalReporter") -> None:
    """Print accuracies and gains of a shift, means over the seeds."""
    columns = {name: [100 * one.accuracies[name] for one in found] for name in found[0].accuracies}
    columns[AUTO] = [100 * one.accuracies[one.chosen] for one in found]
    rows = []
    for name, own in columns.items():
        gains = [a - b for a, b in zip(own, columns[SOURCE], strict=True)]
        error = f" ± {stdev(gains) / len(gains) ** 0.5:.1f}" if len(gains) > 1 else ""
        rows.append([name, f"{mean(own):.1f}", f"{mean(gains):+.1f}{error}"])
    worse = sum(a < b for a, b in zip(columns[AUTO], columns[SOURCE], strict=True))
    terminal.table(
        f"{shift}: accuracy on the target, %",
        ["", "accuracy", "gain"],
        rows,
        caption=f"auto chose {', '.join(one.chosen for one in found)}: worse than source in "
        f"{worse} of {len(found)} (gains with standard errors, paired by seed)",
    )


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
