"""All phases of a run, one after another; a phase that does not pay is undone.

After each phase the validation predictions are compared, image by image, with those of the
phase before. The gain must exceed noise, or the weights go back to where they were.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import keras
import numpy as np

from keras_transfer.devices.profiling import Profiler
from keras_transfer.evaluation.intervals import wilson
from keras_transfer.evaluation.metrics import Gain, paired_gain
from keras_transfer.features.phase_inputs import PhaseInputs, SplitData
from keras_transfer.models.classifier import Classifier, build_classifier
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
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
    """What one phase did to the classifier, as `metrics.json` has it.

    `gain` is the accuracy gained on validation over the classifier as it was before, `gain_error`
    its paired standard error; both None for the first phase. Intervals are 95 % (Wilson), losses
    in nats, without label smoothing. Test figures are for the report only: no decision sees them;
    they are None where the test split is empty.
    """

    name: str
    epochs: int
    best_epoch: int
    seconds: float
    num_trainable: int
    val_accuracy: float
    val_interval: tuple[float, float]
    val_loss: float
    test_accuracy: float | None
    test_interval: tuple[float, float] | None
    test_loss: float | None
    gain: float | None
    gain_error: float | None
    kept: bool
    history: list[dict[str, float]] = field(default_factory=list)


def prepare_classifier(
    spec: RunSpec,
    class_names: Sequence[str],
    *,
    build: Callable[..., Classifier] = build_classifier,
) -> Classifier:
    """The spec's classifier before any training.

    `build` is `build_classifier`, or a `Rebuilder` for whoever trains many.

    Raises:
        SpecError: an unknown backbone or stage, in the model or in a phase, or too small images.
        WeightsError: the trunk's weights are missing or do not fit.
    """
    classifier = build(
        spec.model, image_size=spec.data.image_size, class_names=class_names, seed=spec.seed
    )
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
        supply: what every phase reads.
        num_epochs: stop when all phases together have trained for so many epochs. A phase that is
            cut off is judged as it stands; called again with more epochs and the same `run`, it
            goes on as if it had never stopped.
        save_seconds: between two checkpoints of a phase at least; 0 keeps every epoch.
        run: where to keep checkpoints; what an interrupted run left there is taken up.
        profile: whether to trace some steps of every phase, into profile/ of the run.

    Raises:
        SpecError: a phase unfreezes from a stage that the model does not have.
        RunError: training diverged, or the disk is full.
    """
    spec = phase_inputs.spec
    finished = Checkpoint(run, "finished") if run else None
    outcomes = _take_up(finished, classifier, reporter)
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
    """Train and judge one phase; whether it came to its end."""
    phase = phase_inputs.spec.phases[number]
    data, part = phase_inputs.for_phase(classifier, number)
    predictor = keras.Model(part.input, part.output)
    labels = data.examples.labels[data.splits.val]
    variables = changing_variables(classifier, phase)
    weights_before = read_weights(variables)
    val_before = data.predict(predictor, data.splits.val) if outcomes else None
    with reporter.training_progress(phase.name, phase.epochs, data.steps_per_epoch) as callbacks:
        result = train_phase(
            classifier,
            phase,
            data,
            part=part,
            label_smoothing=data.spec.training.label_smoothing,
            num_epochs=num_epochs,
            saver=saver,
            save_seconds=save_seconds,
            num_parts=data.batch_size // (data.spec.devices.batch_size or data.batch_size),
            callbacks=[*callbacks, *([profiler] if profiler else [])],
            say=reporter.info,
        )
    judged = {"val": data.splits.val, "test": data.splits.test}
    answers = {name: data.predict(predictor, rows) for name, rows in judged.items() if len(rows)}
    val = answers["val"]
    gain = paired_gain(labels, val_before, val) if val_before is not None else None
    errors = data.spec.training.rollback_errors
    pays = gain is None or gain.difference > max(0.0, errors * gain.standard_error)
    kept = pays or not data.spec.training.rollback
    figures = {name: _judge(data, judged[name], answers[name]) for name in answers}
    outcome = _outcome(result, figures, gain=gain, kept=kept)
    reporter.info(_verdict(outcome, pays=pays))
    if not kept:
        assign_weights(variables, weights_before)
    return outcome, result.is_finished


@dataclass(frozen=True)
class _Figures:
    """How well rows are named: the share, its interval and the log loss."""

    accuracy: float
    interval: tuple[float, float]
    loss: float


def _judge(data: SplitData, rows: np.ndarray, probabilities: np.ndarray) -> _Figures:
    labels = data.examples.labels[rows]
    right = int(np.sum(probabilities.argmax(axis=1) == labels))
    of_label = probabilities[np.arange(len(rows)), labels].astype(np.float64)
    # Probabilities are float32: what underflows is as small as such a number can be.
    loss = -np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean()
    return _Figures(right / len(rows), wilson(right, len(rows)), float(loss))


def _outcome(
    result: PhaseResult, figures: Mapping[str, _Figures], *, gain: Gain | None, kept: bool
) -> Outcome:
    val, test = figures["val"], figures.get("test")
    return Outcome(
        name=result.name,
        epochs=result.epochs,
        best_epoch=result.best_epoch,
        seconds=result.seconds,
        num_trainable=result.num_trainable,
        val_accuracy=val.accuracy,
        val_interval=val.interval,
        val_loss=val.loss,
        test_accuracy=test.accuracy if test else None,
        test_interval=test.interval if test else None,
        test_loss=test.loss if test else None,
        gain=gain.difference if gain else None,
        gain_error=gain.standard_error if gain else None,
        kept=kept,
        history=list(result.history),
    )


def _verdict(outcome: Outcome, *, pays: bool) -> str:
    low, high = outcome.val_interval
    text = (
        f"Phase {outcome.name!r}: validation accuracy {outcome.val_accuracy:.1%} "
        f"({low:.1%} to {high:.1%}), best epoch {outcome.best_epoch} of {outcome.epochs}"
    )
    if outcome.gain is None or outcome.gain_error is None:
        return text + "."
    text += f"; gain {100 * outcome.gain:+.1f} ± {100 * outcome.gain_error:.1f} points"
    if pays:
        return text + ": it pays, so it is kept."
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


def _take_up(
    finished: Checkpoint | None, classifier: Classifier, reporter: Reporter
) -> list[Outcome]:
    state = finished.load() if finished else None
    if state is None:
        return []
    outcomes = [Outcome(**values) for values in state.numbers["outcomes"]]
    by_path = {variable.path: variable for variable in classifier.model.variables}
    kept = state.arrays["weights"]
    assign_weights([by_path[path] for path in kept], kept)
    reporter.info(f"Going on after phase {outcomes[-1].name!r}.")
    return outcomes
