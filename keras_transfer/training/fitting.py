"""Trains all phases of a run, one after another, and undoes a phase without a gain.

After each phase its validation predictions are compared, image by image, with those before it. If
the gain does not exceed the noise, the weights are restored.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import keras
import numpy as np

from keras_transfer.devices.profiling import Profiler
from keras_transfer.evaluation.results import Gain, paired_gain
from keras_transfer.features.phase_inputs import PhaseInputs, SplitData
from keras_transfer.models.classifier import Classifier, build_classifier
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.task import Monitor, Task
from keras_transfer.training.objective import PhaseContext
from keras_transfer.training.phases import PhaseResult, train_phase
from keras_transfer.training.progress import (
    Checkpoint,
    State,
    assign_weights,
    changing_variables,
    read_weights,
)


@dataclass(frozen=True)
class Outcome:
    """The result of one phase, as stored in `metrics.json`.

    `metric` is the task's monitored metric, and the scores are its values, with 95 % intervals.
    `gain` is the mean difference of the example scores on validation after and before the phase,
    `gain_error` its paired standard error; both are None for the first phase. Losses are means
    without label smoothing. Test figures are for the report only and decide nothing; they are None
    where the test split is empty.
    """

    name: str
    epochs: int
    best_epoch: int
    seconds: float
    num_trainable: int
    metric: str
    val_score: float
    val_interval: tuple[float, float]
    val_loss: float
    test_score: float | None
    test_interval: tuple[float, float] | None
    test_loss: float | None
    gain: float | None
    gain_error: float | None
    kept: bool
    history: list[dict[str, float]] = field(default_factory=list)


def prepare_classifier(
    spec: RunSpec,
    task: Task,
    *,
    build: Callable[..., Classifier] = build_classifier,
) -> Classifier:
    """Build the spec's classifier, untrained.

    `build` is `build_classifier`, or a `Rebuilder` where many are trained.

    Raises:
        SpecError: an unknown backbone or stage, in the model or in a phase, or too small images.
        WeightsError: the trunk's weights are missing or do not fit.
    """
    classifier = build(spec.model, image_size=spec.data.image_size, task=task, seed=spec.seed)
    for number, phase in enumerate(spec.phases):
        classifier.from_stage(phase.unfreeze, field=f"phases.{number}.unfreeze")
    return classifier


def fit_phases(
    classifier: Classifier,
    phase_inputs: PhaseInputs,
    *,
    reporter: Reporter,
    run: RunFolder | None = None,
    num_epochs: int | None = None,
    save_seconds: float = 0.0,
    profile: bool = False,
) -> list[Outcome]:
    """Train every phase of the spec and leave the classifier at the best of them.

    Args:
        phase_inputs: the inputs of every phase, and the method by which it trains.
        num_epochs: stop after this many epochs of all phases together. A phase that is stopped is
            evaluated as it is; a second call with more epochs and the same `run` continues it with
            the same result as without the stop.
        save_seconds: least time between two checkpoints of a phase; 0 saves after every epoch.
        run: where checkpoints are saved; those of an interrupted run are resumed.
        profile: whether to trace some steps of every phase, into profile/ of the run.

    Raises:
        SpecError: a phase unfreezes from a stage that the model does not have.
        RunError: training diverged, or the disk is full.
    """
    spec = phase_inputs.spec
    training = phase_inputs.source.examples.targets.values[phase_inputs.splits.train]
    classifier = replace(classifier, task=classifier.task.scaled(training))
    classifier.task.initialise(classifier.model)
    finished = Checkpoint(run, "finished") if run else None
    outcomes = _resume_finished(finished, classifier, reporter)
    for number in range(len(outcomes), len(spec.phases)):
        left = None if num_epochs is None else num_epochs - sum(o.epochs for o in outcomes)
        if left is not None and left < 1:
            break
        saver = Checkpoint(run, f"phase-{number}") if run else None
        name = spec.phases[number].name
        profiler = Profiler(run.profile_folder / name) if run and profile else None
        outcome, is_finished = _fit_one(
            classifier,
            phase_inputs,
            number,
            outcomes,
            reporter,
            saver=saver,
            num_epochs=left,
            save_seconds=save_seconds,
            profiler=profiler,
        )
        outcomes.append(outcome)
        if finished and saver and is_finished:
            finished.save(_state(classifier, spec, outcomes))
            saver.discard()
    return outcomes


def _fit_one(
    classifier: Classifier,
    phase_inputs: PhaseInputs,
    number: int,
    outcomes: list[Outcome],
    reporter: Reporter,
    *,
    saver: Checkpoint | None,
    num_epochs: int | None,
    save_seconds: float,
    profiler: Profiler | None,
) -> tuple[Outcome, bool]:
    """Train and evaluate one phase; also returns whether it is finished."""
    phase, task = phase_inputs.spec.phases[number], classifier.task
    method = phase_inputs.methods[number]
    data, part = phase_inputs.for_phase(classifier, number)
    on_features = part is not classifier.model
    context = PhaseContext(data.spec, task, on_features, reporter)
    objective = method.prepare(context, phase, part)
    predictor = keras.Model(part.input, part.output)
    variables = changing_variables(classifier, phase)
    weights_before = read_weights(variables)
    val_before = data.predict(predictor, data.splits.val) if outcomes else None
    with reporter.training_progress(phase.name, phase.epochs, data.steps_per_epoch) as callbacks:
        result = train_phase(
            classifier,
            phase,
            replace(data, transform=objective.batch_transform),
            part=objective.model,
            loss=objective.loss,
            num_epochs=num_epochs,
            saver=saver,
            save_seconds=save_seconds,
            num_parts=data.batch_size // (data.spec.devices.batch_size or data.batch_size),
            callbacks=[*callbacks, *([profiler] if profiler else [])],
            say=reporter.info,
        )
    method.finish(classifier.model)
    val = _Predictions.of(data, data.splits.val, predictor)
    test = _Predictions.of(data, data.splits.test, predictor) if len(data.splits.test) else None
    gain = _gain(task, val, val_before)
    training = data.spec.training
    pays = gain is None or gain.difference > max(
        0.0, training.rollback_errors * gain.standard_error
    )
    kept = pays or not training.rollback
    outcome = _outcome(task, result, val, test, gain=gain, kept=kept)
    reporter.info(_describe(outcome, task.monitor, pays=pays))
    if not kept:
        assign_weights(variables, weights_before)
    return outcome, result.is_finished


class _Predictions(NamedTuple):
    """Target values and outputs of some rows."""

    values: np.ndarray
    outputs: np.ndarray

    @classmethod
    def of(cls, data: SplitData, rows: np.ndarray, predictor: keras.Model) -> "_Predictions":
        return cls(data.examples.targets.values[rows], data.predict(predictor, rows))


def _gain(task: Task, val: _Predictions, outputs_before: np.ndarray | None) -> Gain | None:
    if outputs_before is None:
        return None
    before = task.example_scores(val.values, outputs_before)
    return paired_gain(before, task.example_scores(*val))


def _outcome(
    task: Task,
    result: PhaseResult,
    val: _Predictions,
    test: _Predictions | None,
    *,
    gain: Gain | None,
    kept: bool,
) -> Outcome:
    val_figure = task.headline(*val)
    test_figure = task.headline(*test) if test else None
    return Outcome(
        name=result.name,
        epochs=result.epochs,
        best_epoch=result.best_epoch,
        seconds=result.seconds,
        num_trainable=result.num_trainable,
        metric=val_figure.name,
        val_score=val_figure.value,
        val_interval=val_figure.interval,
        val_loss=float(task.example_losses(*val).mean()),
        test_score=test_figure.value if test_figure else None,
        test_interval=test_figure.interval if test_figure else None,
        test_loss=float(task.example_losses(*test).mean()) if test else None,
        gain=gain.difference if gain else None,
        gain_error=gain.standard_error if gain else None,
        kept=kept,
        history=list(result.history),
    )


def _describe(outcome: Outcome, monitor: Monitor, *, pays: bool) -> str:
    low, high = map(monitor.format, outcome.val_interval)
    text = (
        f"Phase {outcome.name!r}: validation {outcome.metric.replace('_', ' ')} "
        f"{monitor.format(outcome.val_score)} ({low} to {high}), best epoch "
        f"{outcome.best_epoch} of {outcome.epochs}"
    )
    if outcome.gain is None or outcome.gain_error is None:
        return text + "."
    text += f"; gain {monitor.format_gain(outcome.gain, outcome.gain_error)}"
    if pays:
        return text + ": more than noise, so it is kept."
    if outcome.kept:
        return text + ": within noise, but kept because training.rollback is off."
    return text + ": within noise, so it is undone."


def _state(classifier: Classifier, spec: RunSpec, outcomes: list[Outcome]) -> State:
    changed = {
        variable.path: variable
        for phase in spec.phases[: len(outcomes)]
        for variable in changing_variables(classifier, phase)
    }
    numbers = {"outcomes": [asdict(outcome) for outcome in outcomes]}
    return State(numbers, {"weights": read_weights(list(changed.values()))})


def _resume_finished(
    finished: Checkpoint | None, classifier: Classifier, reporter: Reporter
) -> list[Outcome]:
    state = finished.load() if finished else None
    if state is None:
        return []
    outcomes = [Outcome(**values) for values in state.numbers["outcomes"]]
    by_path = {variable.path: variable for variable in classifier.model.variables}
    kept = state.arrays["weights"]
    assign_weights([by_path[path] for path in kept], kept)
    reporter.info(f"Continuing after phase {outcomes[-1].name!r}.")
    return outcomes
