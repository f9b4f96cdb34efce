"""Trains all phases of a run, one after another, and keeps, blends or undoes each later one.

After such a phase the weights with the lowest validation loss are chosen: see `selection`.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_transfer.devices.profiling import Profiler
from keras_transfer.evaluation.results import Gain, paired_gain
from keras_transfer.features.phase_inputs import PhaseInputs, SplitData
from keras_transfer.models.classifier import Classifier
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.task import Monitor, Task
from keras_transfer.training.head_solution import solve_head
from keras_transfer.training.objective import Objective, PhaseContext
from keras_transfer.training.phases import PhaseResult, train_phase
from keras_transfer.training.progress import (
    Arrays,
    Checkpoint,
    State,
    assign_weights,
    changing_variables,
    read_weights,
)
from keras_transfer.training.selection import (
    SHARES,
    Choice,
    Temperature,
    choose_share,
    divide_logits,
)


@dataclass(frozen=True)
class Outcome:
    """The result of one phase, as stored in `metrics.json`.

    `metric` is the task's monitored metric, and the scores are its values, with 95 % intervals.
    `share` is that of the phase's weights in the mean with those before it, which was chosen on
    validation: 1 for the phase as it was trained, 0 where it was undone, which `kept` says too.
    `temperature` is the divisor of the logits that was chosen with it.
    `gain` is the mean difference of the example scores on validation after the choice and before
    the phase, `gain_error` its paired standard error; both are None for the first phase. Losses are
    means without label smoothing. Test figures are for the report only and decide nothing; they are
    None where the test split is empty. `privacy` is that of the objective.
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
    share: float
    temperature: Temperature
    kept: bool
    history: list[dict[str, float]] = field(default_factory=list)
    privacy: dict[str, Any] | None = None


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
    classifier = scale_task(classifier, phase_inputs)
    finished = Checkpoint(run, "finished", reporter.info) if run else None
    outcomes = _resume_finished(finished, classifier, reporter)
    for number in range(len(outcomes), len(spec.phases)):
        left = None if num_epochs is None else num_epochs - sum(o.epochs for o in outcomes)
        if left is not None and left < 1:
            break
        saver = Checkpoint(run, f"phase-{number}", reporter.info) if run else None
        name = spec.phases[number].name
        profiler = Profiler(run.profile_folder / name) if run and profile else None
        variables = changing_variables(classifier, spec.phases[number])
        before = read_weights(variables) if outcomes else None
        trained = run_phase(
            classifier,
            phase_inputs,
            number,
            reporter=reporter,
            saver=saver,
            num_epochs=left,
            save_seconds=save_seconds,
            profiler=profiler,
        )
        outcomes.append(_conclude(classifier, trained, variables, before))
        reporter.info(_describe(outcomes[-1], classifier.task.monitor))
        if finished and saver and trained.result.is_finished:
            finished.save(_state(classifier, spec, outcomes))
            saver.discard()
    return outcomes


def scale_task(classifier: Classifier, phase_inputs: PhaseInputs) -> Classifier:
    """The classifier with its task scaled on the training split, and initialised for it."""
    values = phase_inputs.source.examples.targets.values[phase_inputs.splits.train]
    classifier = replace(classifier, task=classifier.task.scaled(values))
    classifier.task.initialise(classifier.model)
    return classifier


class TrainedPhase(NamedTuple):
    """A phase whose weights are set, and what is needed to evaluate it.

    `predictor` is the part of the classifier that maps `data.inputs` to logits. Weights that are
    `is_final` are neither undone nor averaged with those before.
    """

    result: PhaseResult
    data: SplitData
    predictor: keras.Model
    is_final: bool
    privacy: dict[str, Any] | None = None


def run_phase(
    classifier: Classifier,
    phase_inputs: PhaseInputs,
    number: int,
    *,
    reporter: Reporter,
    saver: Checkpoint | None,
    num_epochs: int | None,
    save_seconds: float,
    profiler: Profiler | None = None,
) -> TrainedPhase:
    """Train one phase by its method; arguments as for `fit_phases`."""
    phase, method = phase_inputs.spec.phases[number], phase_inputs.methods[number]
    data, part = phase_inputs.for_phase(classifier, number)
    on_features, images = part is not classifier.model, phase_inputs.images(data)
    stages, added = classifier.stages, classifier.trunk.added
    context = PhaseContext(data.spec, classifier.task, on_features, reporter, images, stages, added)
    objective = method.prepare(context, phase, part)
    predictor = keras.Model(part.input, part.output)
    result = None
    if objective.solve:
        result = solve_head(
            classifier,
            phase,
            data,
            objective=objective,
            saver=saver,
            predictor=predictor,
            reporter=reporter,
        )
    if result is None or objective.fits:
        trained = _as_trained(data, objective)
        with reporter.training_progress(phase.name, phase.epochs, trained.steps_per_epoch) as shown:
            result = train_phase(
                classifier,
                phase if objective.decays else replace(phase, weight_decay=0.0),
                trained,
                part=objective.model,
                loss=objective.loss,
                num_epochs=num_epochs,
                saver=saver,
                save_seconds=save_seconds,
                num_parts=data.batch_size // (data.spec.devices.batch_size or data.batch_size),
                callbacks=[*objective.callbacks, *shown, *([profiler] if profiler else [])],
                least_epochs=objective.least_epochs,
                trains=objective.trains,
                shares=objective.shares,
                average_epochs=objective.average_epochs,
                say=reporter.info,
            )
    method.finish(classifier.model)
    return TrainedPhase(result, data, predictor, objective.least_epochs > 0, objective.privacy)


def _as_trained(data: SplitData, objective: Objective) -> SplitData:
    """The data with what the objective trains on besides."""
    return replace(
        data,
        columns=objective.columns,
        transform=objective.batch_transform,
        pairs=objective.pairs,
    )


def _conclude(
    classifier: Classifier,
    trained: TrainedPhase,
    variables: list[keras.Variable],
    before: Arrays | None,
) -> Outcome:
    """Choose the weights of a phase, None `before` the first, and evaluate them."""
    task, data, predictor = classifier.task, trained.data, trained.predictor
    rows, choice, scores_before = data.splits.val, Choice(1.0, 1.0), None
    values = data.examples.targets.values[rows]

    def predict() -> np.ndarray:
        return data.predict(predictor, rows)

    if before is not None:
        after = read_weights(variables)
        assign_weights(variables, before)
        scores_before = task.example_scores(values, predict())
        assign_weights(variables, after)
        if data.spec.training.rollback:
            choice = choose_share(
                variables,
                before,
                task=task,
                values=values,
                predict=predict,
                shares=(1.0,) if trained.is_final else SHARES,
            )
            divide_logits(classifier, choice.temperature)
    val = _Predictions.of(data, rows, predictor)
    gain = None
    if scores_before is not None:
        gain = paired_gain(scores_before, task.example_scores(*val))
    test = _Predictions.of(data, data.splits.test, predictor) if len(data.splits.test) else None
    outcome = _outcome(task, trained.result, val, test, gain=gain, choice=choice)
    return replace(outcome, privacy=trained.privacy)


class _Predictions(NamedTuple):
    """Target values and outputs of some rows."""

    values: np.ndarray
    outputs: np.ndarray

    @classmethod
    def of(cls, data: SplitData, rows: np.ndarray, predictor: keras.Model) -> "_Predictions":
        return cls(data.examples.targets.values[rows], data.predict(predictor, rows))


def _outcome(
    task: Task,
    result: PhaseResult,
    val: _Predictions,
    test: _Predictions | None,
    *,
    gain: Gain | None,
    choice: Choice,
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
        share=choice.share,
        temperature=choice.temperature,
        kept=choice.share > 0,
        history=list(result.history),
    )


def _describe(outcome: Outcome, monitor: Monitor) -> str:
    low, high = map(monitor.format, outcome.val_interval)
    text = (
        f"Phase {outcome.name!r}: validation {outcome.metric.replace('_', ' ')} "
        f"{monitor.format(outcome.val_score)} ({low} to {high})"
    )
    if outcome.epochs > 1:
        text += f", best epoch {outcome.best_epoch} of {outcome.epochs}"
    if outcome.gain is None or outcome.gain_error is None:
        return text + "."
    if not outcome.kept:
        return text + "; the phase is undone: the validation loss was lower before it."
    text += f"; gain {monitor.format_gain(outcome.gain, outcome.gain_error)}"
    if outcome.share < 1:
        text += f". Its weights are averaged with those before it, {100 * outcome.share:.0f} % its"
    return text + "."


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
