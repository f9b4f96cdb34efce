"""Distillation: ordinary runs whose phases learn from a teacher, and the report on the last one."""

from keras_transfer.experiments.distill.comparison import Comparison, compare
from keras_transfer.experiments.distill.generations import Generations
from keras_transfer.experiments.distill.report import write_distillation
from keras_transfer.experiments.distill.settings import spec_smaller
from keras_transfer.experiments.run import run_transfer
from keras_transfer.experiments.session import open_session
from keras_transfer.reporting.reporter import Reporter, SilentReporter
from keras_transfer.specs import DistillSpec, RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import vacated_on_refusal


def run_distillation(
    generations: Generations, first: RunFolder, settings: DistillSpec, *, reporter: Reporter
) -> Comparison:
    """Train all students, compare them, and write the report into the folder of the last one.

    Finished runs are not repeated: where only the comparison was interrupted, this is made alone.

    Args:
        first: from `generations.start(1)`.
        settings: seeds and the smaller network of the comparison.

    Raises:
        DataError, SpecError, WeightsError, RunError, ExportError: as of `run_transfer`.
    """
    runs, smaller = [first], spec_smaller(generations.spec, settings)
    if smaller and not first.is_complete:
        _check(smaller, generations, first)
    for number in range(1, generations.count + 1):
        if generations.count > 1:
            reporter.info(f"Generation {number} of {generations.count}")
        if number > 1:
            runs.append(generations.start(number))
        if not runs[-1].is_complete:
            try:
                run_transfer(generations.spec_of(number), runs[-1], reporter=reporter)
            finally:
                generations.vacate()
    found = compare(
        [run.path for run in runs], num_seeds=settings.seeds, smaller=smaller, reporter=reporter
    )
    write_distillation(found)
    return found


def _check(smaller: RunSpec, generations: Generations, first: RunFolder) -> None:
    """Build the smaller network, whose errors are told before any student trains."""
    try:
        with (
            vacated_on_refusal(first),
            open_session(smaller, reporter=SilentReporter()) as session,
        ):
            session.build_classifier()
    finally:
        generations.vacate()
