"""The refit: the chosen phases once more, on training and validation images together.

Validation images choose epochs and phases; after that they are training images that were left out.
"""

import time
from dataclasses import dataclass

from keras_transfer.features.phase_inputs import PhaseInputs
from keras_transfer.models.classifier import Classifier
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.task import Task
from keras_transfer.training.fitting import Outcome, TrainedPhase, run_phase, scale_task
from keras_transfer.training.progress import (
    Arrays,
    Checkpoint,
    assign_weights,
    changing_variables,
    read_weights,
)
from keras_transfer.training.selection import blend, divide_logits


@dataclass(frozen=True)
class Refit:
    """The refit of a run, as stored in `metrics.json`.

    Test figures are those of the refitted model, which is the one that is exported; None where the
    test split is empty. Figures of validation belong to the model before the refit.
    """

    num_images: int
    seconds: float
    test_score: float | None
    test_interval: tuple[float, float] | None
    test_loss: float | None


def initial_weights(classifier: Classifier, phase_inputs: PhaseInputs) -> Arrays:
    """The weights that the phases change, before any of them has started."""
    phases = phase_inputs.spec.phases
    return read_weights([v for phase in phases for v in changing_variables(classifier, phase)])


def refit(
    classifier: Classifier,
    phase_inputs: PhaseInputs,
    outcomes: list[Outcome],
    *,
    initial: Arrays,
    reporter: Reporter,
    run: RunFolder | None = None,
    save_seconds: float = 0.0,
) -> Refit:
    """Train the phases that were kept from the initial weights, for as many epochs as were best.

    Args:
        phase_inputs: those of the phases, which are finished.
        initial: from `initial_weights`.
        run: where checkpoints are saved; those of an interrupted refit are resumed.
    """
    started = time.perf_counter()
    inputs = phase_inputs.joined()
    by_path = {variable.path: variable for variable in classifier.model.variables}
    assign_weights([by_path[path] for path in initial], initial)
    classifier = scale_task(classifier, phase_inputs)
    reporter.info(f"The kept phases are trained once more, on {len(inputs.splits.train):,} images.")
    for number, outcome in enumerate(outcomes):
        if not outcome.kept:
            continue
        variables = changing_variables(classifier, inputs.spec.phases[number])
        before = read_weights(variables)
        trained = run_phase(
            classifier,
            inputs,
            number,
            reporter=reporter,
            saver=Checkpoint(run, f"refit-{number}", reporter.info) if run else None,
            num_epochs=outcome.best_epoch,
            save_seconds=save_seconds,
        )
        blend(variables, before, read_weights(variables), outcome.share)
        divide_logits(classifier, outcome.temperature)
    return _evaluate(classifier.task, trained, seconds=time.perf_counter() - started)


def _evaluate(task: Task, trained: TrainedPhase, *, seconds: float) -> Refit:
    data = trained.data
    rows, score, loss = data.splits.test, None, None
    if len(rows):
        values, outputs = data.examples.targets.values[rows], data.predict(trained.predictor, rows)
        score = task.headline(values, outputs)
        loss = float(task.example_losses(values, outputs).mean())
    return Refit(
        num_images=len(data.splits.train),
        seconds=seconds,
        test_score=score.value if score else None,
        test_interval=score.interval if score else None,
        test_loss=loss,
    )
