"""Probe: measure the value of pretrained weights on these images, with few labels.

    python -m pipelines.probe quickstart
    python -m pipelines.probe my_photos --labels 50,100,200

Prints minimum, median and maximum accuracy over the seeds of a logistic regression on the trunk's
features, on those of a random trunk, and on raw pixels.
"""

import sys
from collections.abc import Sequence
from statistics import median

from keras_transfer.devices import native_log_to
from keras_transfer.storage.model_files import title
from pipelines.arguments import add_spec_arguments, main_of, make_parser, read_spec, scratch_log


def _run(argv: Sequence[str] | None) -> None:
    parser = make_parser("probe", str(__doc__))
    add_spec_arguments(parser)
    parser.add_argument("--labels", default="30,50,100,200,1000", help="numbers of labels")
    parser.add_argument("--seeds", type=int, default=5, help="how many draws of labelled images")
    arguments = parser.parse_intermixed_args(argv)
    spec = read_spec(arguments)
    counts = [int(number) for number in arguments.labels.split(",")]
    with native_log_to(scratch_log()):
        from keras_transfer.reporting.numbers import percent, percent_range
        from keras_transfer.reporting.reporter import TerminalReporter
        from pipelines.benchmarks.probe import probe

        terminal = TerminalReporter()
        probes = probe(spec, counts, num_seeds=arguments.seeds, reporter=terminal)
        rows: dict[str, list[str]] = {}
        for item in probes:
            low, high = min(item.accuracies), max(item.accuracies)
            text = f"{percent(median(item.accuracies))}\n{percent_range(low, high)}"
            rows.setdefault(item.features, [item.features]).append(text)
        header = ["features", *(f"{count} labels" for count in counts)]
        caption = f"accuracy in %: median, and minimum–maximum over {arguments.seeds} seeds"
        terminal.table(
            f"Linear probes of {title(spec.model.backbone)}",
            header,
            list(rows.values()),
            caption=caption,
        )


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
