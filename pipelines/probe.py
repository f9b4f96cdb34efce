"""Probe: measure the value of pretrained weights on these images, with few labels.

    python -m pipelines.probe quickstart
    python -m pipelines.probe my_photos --labels 50,100,200
    python -m pipelines.probe my_photos --pretrained saved_models/my_photos-simsiam,saved_models/a

Prints minimum, median and maximum accuracy over the seeds of a logistic regression on the trunk's
features, on those of a random trunk, and on raw pixels. With --pretrained it prints the gain of
other weights of the same trunk over those of the spec: of pretrainings, of runs on other images and
of archives; images that they were trained on are not evaluated.
"""

import argparse
import sys
from collections.abc import Sequence
from statistics import median

from keras_transfer.devices import native_log_to
from keras_transfer.specs import RunSpec
from keras_transfer.storage.model_files import title
from pipelines.arguments import add_spec_arguments, main_of, make_parser, read_spec, scratch_log


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("probe", str(__doc__))
    add_spec_arguments(parser)
    parser.add_argument("--labels", default="30,50,100,200,1000", help="numbers of labels")
    parser.add_argument("--seeds", type=int, default=5, help="how many draws of labelled images")
    parser.add_argument(
        "--pretrained",
        default="",
        metavar="PATHS",
        help="folders of pretrainings or runs, or archives .npz, separated by commas",
    )
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    spec = read_spec(arguments)
    counts = [int(number) for number in arguments.labels.split(",")]
    with native_log_to(scratch_log()):
        if arguments.pretrained:
            _compare(spec, arguments.pretrained.split(","), counts, arguments.seeds)
        else:
            _probe(spec, counts, arguments.seeds)


def _probe(spec: RunSpec, counts: Sequence[int], num_seeds: int) -> None:
    from keras_transfer.reporting.numbers import percent, percent_range
    from keras_transfer.reporting.reporter import TerminalReporter
    from pipelines.benchmarks.probe import probe

    terminal = TerminalReporter()
    probes = probe(spec, counts, num_seeds=num_seeds, reporter=terminal)
    rows: dict[str, list[str]] = {}
    for item in probes:
        low, high = min(item.accuracies), max(item.accuracies)
        text = f"{percent(median(item.accuracies))}\n{percent_range(low, high)}"
        rows.setdefault(item.features, [item.features]).append(text)
    header = ["features", *(f"{count} labels" for count in counts)]
    caption = f"accuracy in %: median, and minimum–maximum over {num_seeds} seeds"
    terminal.table(
        f"Linear probes of {title(spec.model.backbone)}",
        header,
        list(rows.values()),
        caption=caption,
    )


def _compare(spec: RunSpec, paths: Sequence[str], counts: Sequence[int], num_draws: int) -> None:
    from keras_transfer.reporting.reporter import TerminalReporter
    from pipelines.benchmarks.transfer import measure_transfer, tabulate

    terminal = TerminalReporter()
    found = measure_transfer(spec, paths, counts, num_draws=num_draws, reporter=terminal)
    caption = (
        f"accuracy and paired gain in %: mean over {num_draws} draws of labelled images, and 95 % "
        "interval"
    )
    terminal.table(f"Transfer to {spec.name}", *tabulate(found), caption=caption)


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
