"""Distillation: ordinary runs whose phases learn from a teacher, and the report on the last one."""

from keras_transfer.experiments.distill.comparison import Comparison, compare
from keras_transfer.experiments.distill.generations import Generations
from keras_transfer.experiments.distill.report import write_distillation
from keras_transfer.experiments.run import run_transfer
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.storage.run_folder import RunFolder


def run_distillation(
    generations: Generations, first: RunFolder, *, num_seeds: int, reporter: Reporter
) -> Comparison:
    """Train all students, compare them, and write the report into the folder of the last one.

    Finished runs are not repeated: where only the comparison was interrupted, this is made alone.

    Args:
        first: from `generations.start(1)`.

    Raises:
        DataError, SpecError, WeightsError, RunError, ExportError: as of `run_transfer`.
    """
    runs = [first]
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
    found = compare([run.path for run in runs], num_seeds=num_seeds, reporter=reporter)
    write_distillation(found)
    return found
