"""Distil: a student learns from a teacher, and the report says whether that pays.

    python -m pipelines.distill saved_models/teacher my_images model.backbone=mobilenet_0.25
    python -m pipelines.distill saved_models/teacher my_images unlabelled=more_images
    python -m pipelines.distill saved_models/a,saved_models/b my_images temperature=1 seeds=5
    python -m pipelines.distill saved_models/teacher my_images kind=decoupled
    python -m pipelines.distill saved_models/teacher my_images generations=3
    python -m pipelines.distill saved_models/teacher my_images smaller=mobilenet_0.25

The teacher is a run folder or a Keras model file; of several, separated by commas, the mean of
their probabilities counts. The student is an ordinary run; its folder also has distillation.json,
distillation.md and distillation.png, which compare it with the teacher and with the same student
trained on labels alone. With generations=3 each student is the teacher of the next; the last one is
the run, and the earlier ones are in its folder generations/. With smaller=mobilenet_0.25 the report
also has that backbone, trained on labels alone.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_transfer.backbones.choice import choose_backbone
from keras_transfer.backbones.early_checks import check_early
from keras_transfer.config import divide, dotted_fields, is_images, parse_assignments
from keras_transfer.devices import native_log_to
from keras_transfer.experiments.distill.generations import Generations
from keras_transfer.experiments.distill.settings import distillation_spec
from keras_transfer.fields import build
from keras_transfer.specs import DistillSpec, RunSpec
from keras_transfer.storage.run_folder import RunFolder
from pipelines.arguments import (
    RESUMABLE,
    add_spec_arguments,
    main_of,
    make_parser,
    read_source,
    say,
)


def _parser() -> argparse.ArgumentParser:
    own = "fields of distillation", DistillSpec
    parser = make_parser("distill", str(__doc__), fields=True, own=own)
    parser.add_argument("teacher", metavar="TEACHER", help="run folders or Keras model files")
    add_spec_arguments(parser, fields="fields of distillation and of the run")
    parser.add_argument("--output", metavar="DIR", help="run folder (default: saved_models/<name>)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    return parser


def read_words(source: str, words: Sequence[str]) -> tuple[RunSpec, DistillSpec]:
    """The student's spec and that of distillation; a field that both have belongs to the latter.

    Raises:
        SpecError: a field is unknown, has a wrong type or is out of range.
    """
    own, others = divide(parse_assignments(words), DistillSpec)
    settings = build(DistillSpec, own, "", "distillation")
    spec = read_source(source, others)
    if Path(source).exists() and is_images(Path(source)):
        spec = choose_backbone(spec, dotted_fields(others), say)
    return spec, settings


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    spec, settings = read_words(arguments.source, arguments.overrides)
    spec = distillation_spec(spec, arguments.teacher, settings)
    check_early(spec, arguments.output)
    generations = Generations.of(
        spec, settings.generations, output=arguments.output, resume=arguments.resume
    )
    run = generations.start(1)
    with native_log_to(run.log_file):
        _distill(generations, run, settings)


# It imports TensorFlow when it runs, so that its start-up output goes to the log.
def _distill(generations: Generations, first: RunFolder, settings: DistillSpec) -> None:
    from keras_transfer.experiments.distill.distillation import run_distillation
    from keras_transfer.experiments.distill.report import show_distillation
    from keras_transfer.reporting.reporter import TerminalReporter

    terminal = TerminalReporter()
    found = run_distillation(generations, first, settings, reporter=terminal)
    show_distillation(found, terminal)


main = main_of(_run, stopped=RESUMABLE)

if __name__ == "__main__":
    sys.exit(main())
