"""Rank: compare pretrained trunks on these images before fine-tuning any of them.

    python -m pipelines.rank data.path=my_photos 'backbones=["resnet50", "mobilenet_v2"]'
    python -m pipelines.rank quickstart 'backbones=["resnet50", "vgg16"]' max_latency_ms=50

Each candidate's frozen layers run once over the training and validation images; test images are
left out. Features are scored by a linear probe and by nearest neighbours on held-out images, and
by LogME and the H-score, with random features as a control; latency, throughput and size are
measured. The recommendation is the fastest of the candidates within the limits that are not
significantly worse than the best. Writes rank.json, rank.md and rank.png. `train` reuses the
features.

The default preset is resnet50. `folds` are those of the linear probe.
"""

import argparse
import sys
from collections.abc import Sequence

from keras_transfer.config import divide, load_spec, parse_assignments
from keras_transfer.devices import native_log_to
from keras_transfer.fields import build
from keras_transfer.specs import RankSpec, RunSpec
from keras_transfer.storage.run_folder import RunFolder, next_free
from keras_transfer.storage.run_start import DEFAULT_PARENT, vacated_on_refusal
from pipelines.arguments import main_of, make_parser, read_source

DEFAULT_PRESET = "resnet50"


def _parser() -> argparse.ArgumentParser:
    own = "fields of the ranking", RankSpec
    parser = make_parser("rank", str(__doc__), fields=True, own=own)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[images or preset] key=value",
        help="a folder of images, CSV file, preset, spec file or run folder, then fields of the "
        "ranking and of the run",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder to write to (default: saved_models/rank-<name>)"
    )
    return parser


def read_words(words: Sequence[str]) -> tuple[RunSpec, RankSpec]:
    """The run's spec and the ranking's; a field that both have belongs to the ranking.

    Raises:
        SpecError: a field is unknown, has a wrong type or is out of range.
    """
    source, *rest = words if "=" not in words[0] else (DEFAULT_PRESET, *words)
    own, others = divide(parse_assignments(rest), RankSpec)
    ranking = build(RankSpec, own, "", "the ranking")
    return read_source(source, others, base=load_spec(DEFAULT_PRESET)), ranking


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    spec, ranking = read_words(arguments.words)
    folder = RunFolder.create(arguments.output or next_free(DEFAULT_PARENT, f"rank-{spec.name}"))
    with native_log_to(folder.log_file), vacated_on_refusal(folder):
        from keras_transfer.experiments.rank.ranking import rank
        from keras_transfer.experiments.rank.report import show_ranking, write_ranking
        from keras_transfer.reporting.reporter import TerminalReporter

        terminal = TerminalReporter()
        result = rank(spec, ranking, reporter=terminal)
        show_ranking(result, write_ranking(result, folder), folder, terminal)


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
