"""Distillation: an ordinary run whose phases learn from a teacher, and the report on it."""

from keras_transfer.experiments.distill.comparison import Comparison, compare
from keras_transfer.experiments.distill.report import write_distillation
from keras_transfer.experiments.run import run_transfer
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder


def run_distillation(
    spec: RunSpec, run: RunFolder, *, num_seeds: int, reporter: Reporter
) -> Comparison:
    """Train the student, compare it, and write the report into its folder.

    A finished run, whose comparison was interrupted, is only compared.

    Args:
        spec: from `settings.distillation_spec`.
        run: from `start_run` with `last=REPORT_FILE`, new or to be resumed.

    Raises:
        DataError, SpecError, WeightsError, RunError, ExportError: as of `run_transfer`.
    """
    if not run.is_complete:
        run_transfer(spec, run, reporter=reporter)
    found = compare(run.path, num_seeds=num_seeds, reporter=reporter)
    write_distillation(found)
    return found
