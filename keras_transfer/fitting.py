"""All phases of a run, one after another; a phase that does not pay is undone.

After each phase the validation predictions are compared, picture by picture, with those of the
phase before. The gain must exceed noise, or the weights go back to where they were.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import keras
import numpy as np

from keras_transfer.delivery.runs import RunFolder
from keras_transfer.evaluation.intervals import wilson
from keras_transfer.evaluation.metrics import Gain, paired_gain
from keras_transfer.models.classifier import Classifier, build_classifier
from keras_transfer.specs import RunSpec
from keras_transfer.supply import SplitData, Supply
from keras_transfer.terminal import Narrator
from keras_transfer.training.checkpoints import Checkpoint
from keras_transfer.training.phases import PhaseResult, train_phase
from keras_transfer.training.progress import (
    State,
    assign_weights,
    changing_variables,
    read_weights,
)


@dataclass(frozen=True)
class Outcome:
    """What one phase did to the classifier, as `metrics.json` has it.

    `gain` is the accuracy gained on validation over the classifier as it was before, `gain_error`
    its paired standard error; both None for the first phase. Intervals are 95 % (Wilson). Test
    figures are for the report only: no decision sees them.
    """

    name: str
    epochs: int
    best_epoch: int
    seconds: float
    num_trainable: int
    val_accuracy: float
    val_interval: tuple[float, float]
    test_accuracy: float
    test_interval: tuple[float, float]
    gain: float | None
    gain_error: float | None
    kept: bool
    history: list[dict[str, float]] = field(default_factory=list)


def prepare_classifier(spec: RunSpec, class_names: Sequence[str]) -> Classifier:
    """The spec's classifier before any training.

    Raises:
        SpecError: an unknown backbone or stage, in the model or in a phase, or too small pictures.
        WeightsError: the trunk's weights are missing or do not fit.
    """
    classifier = build_classifier(
        spec.model, image_size=spec.data.image_size, class_names=class_names, seed=spec.seed
    )
    for number, phase in enumerate(spec.phases):
        classifier.from_stage(phase.unfreeze, field=f"phases.{number}.unfreeze")
    return classifier


def fit_phases(
    classifier: Classifier,
    supply: Supply,
    *,
    narrator: Narrator,
    run: RunFolder | None = None,
) -> list[Outcome]:
    """Train every phase of the spec and leave the classifier at the best of them.

    Args:
        supply: what every phase reads.
        run: where to keep checkpoints; what an interrupted run left there is taken up.

    Raises:
        SpecError: a phase unfreezes from a stage that the model does not have.
        RunError: training diverged, or the disk is full.
    """
    spec = supply.spec
    finished = Checkpoint(run, "finished") if run else None
    outcomes = _take_up(finished, classifier, narrator)
    for number in range(len(outcomes), len(spec.phases)):
        saver = Checkpoint(run, f"phase-{number}") if run else None
        outcomes.append(_fit_one(classifier, supply, number, outcomes, narrator, saver))
        if finished and saver:
            finished.save(_state(classifier, spec, outcomes))
            saver.discard()
    return outcomes


def _fit_one(
    classifier: Classifier,
    supply: Supply,
    number: int,
    outcomes: list[Outcome],
    narrator: Narrator,
    saver: Checkpoint | None,
) -> Outcome:
    phase = supply.spec.phases[number]
    data, part = supply.for_phase(classifier, number)
    predictor = keras.Model(part.input, part.output)
    labels = data.examples.labels[data.splits.val]
    variables = changing_variables(classifier, phase)
    weights_before = read_weights(variables)
    val_before = data.predict(predictor, data.splits.val) if outcomes else None
    with narrator.watching(phase.name, phase.epochs, data.steps_per_epoch) as callbacks:
        result = train_phase(
            classifier,
            phase,
            data,
            part=part,
            label_smoothing=data.spec.training.label_smoothing,
            saver=saver,
            callbacks=callbacks,
        )
    val = data.predict(predictor, data.splits.val)
    test = data.predict(predictor, data.splits.test)
    gain = paired_gain(labels, val_before, val) if val_before is not None else None
    errors = data.spec.training.rollback_errors
    pays = gain is None or gain.difference > max(0.0, errors * gain.standard_error)
    kept = pays or not data.spec.training.rollback
    outcome = _outcome(result, data, val, test, gain=gain, kept=kept)
    narrator.say(_verdict(outcome, pays=pays))
    if not kept:
        assign_weights(variables, weights_before)
    return outcome


def _outcome(
    result: PhaseResult,
    data: SplitData,
    val: np.ndarray,
    test: np.ndarray,
    *,
    gain: Gain | None,
    kept: bool,
) -> Outcome:
    def hits(rows: np.ndarray, probabilities: np.ndarray) -> tuple[float, tuple[float, float]]:
        right = int(np.sum(probabilities.argmax(axis=1) == data.examples.labels[rows]))
        return right / len(rows), wilson(right, len(rows))

    val_accuracy, val_interval = hits(data.splits.val, val)
    test_accuracy, test_interval = hits(data.splits.test, test)
    return Outcome(
        name=result.name,
        epochs=result.epochs,
        best_epoch=result.best_epoch,
        seconds=result.seconds,
        num_trainable=result.num_trainable,
        val_accuracy=val_accuracy,
        val_interval=val_interval,
        test_accuracy=test_accuracy,
        test_interval=test_interval,
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
    finished: Checkpoint | None, classifier: Classifier, narrator: Narrator
) -> list[Outcome]:
    state = finished.load() if finished else None
    if state is None:
        return []
    outcomes = [Outcome(**values) for values in state.numbers["outcomes"]]
    by_path = {variable.path: variable for variable in classifier.model.variables}
    kept = state.arrays["weights"]
    assign_weights([by_path[path] for path in kept], kept)
    narrator.say(f"Going on after phase {outcomes[-1].name!r}.")
    return outcomes
