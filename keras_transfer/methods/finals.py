"""Finals of a ranking: the best candidates are fine-tuned, the worse half leaving at each rung.

    rung 1: all, a quarter of the epochs → rung 2: the better half, a half → rung 3: of these the
    better half, to the end

Judged on validation alone. How the outcome agrees with what each metric foretold is told as a
weighted Kendall tau, which says little about two or three.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from scipy.stats import weightedtau

from keras_transfer.config import override
from keras_transfer.delivery.runs import RunFolder
from keras_transfer.devices import forgetting_graphs, set_up
from keras_transfer.evaluation.intervals import Interval, wilson
from keras_transfer.features.store import Store
from keras_transfer.fitting import fit_phases, prepare_classifier
from keras_transfer.methods.trials import Aside
from keras_transfer.specs import PhaseSpec, RunSpec
from keras_transfer.supply import Supply
from keras_transfer.terminal import Narrator
from keras_transfer.transfer import Data

_SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Final:
    """How far one finalist came: `rung` from 1, its epochs and its validation accuracy there."""

    name: str
    rung: int
    num_epochs: int
    val_accuracy: float
    val_interval: Interval
    seconds: float


def run_finals(
    chosen: Sequence[tuple[str, RunSpec]], data: Data, *, store: Store, narrator: Narrator
) -> tuple[Final, ...]:
    """Successive halving among candidates; the winner comes first.

    Args:
        chosen: names and specs, two or more; all have the same phases and data.

    Raises:
        RunError: training diverged, or features cannot be stored.

    Source: K. Jamieson and A. Talwalkar, "Non-stochastic best arm identification and
    hyperparameter optimization", AISTATS 2016.
    """
    total = sum(phase.epochs for phase in chosen[0][1].phases)
    reached: dict[str, Final] = {}
    specs, racing = dict(chosen), [name for name, _ in chosen]
    with tempfile.TemporaryDirectory(prefix="finals-") as scratch:
        for rung, share in enumerate(_SHARES, 1):
            if len(racing) == 1 and share < 1:
                continue  # Nobody is left to be compared with.
            num_epochs = math.ceil(share * total)
            for number, name in enumerate(racing):
                started = time.perf_counter()
                folder = Path(scratch) / f"{rung}-{number}"
                accuracy = _train(
                    name, specs[name], num_epochs, data, folder, store=store, narrator=narrator
                )
                seconds = time.perf_counter() - started
                before = reached[name].seconds if name in reached else 0.0
                interval = wilson(round(accuracy * len(data.splits.val)), len(data.splits.val))
                reached[name] = Final(name, rung, num_epochs, accuracy, interval, before + seconds)
                narrator.say(
                    f"Rung {rung}, {name}: validation accuracy {accuracy:.1%} after {num_epochs} "
                    f"of {total} epochs, {seconds:.0f} s."
                )
            racing.sort(key=lambda name: -reached[name].val_accuracy)
            racing = racing[: math.ceil(len(racing) / 2)]
    return tuple(sorted(reached.values(), key=lambda one: (-one.rung, -one.val_accuracy)))


def _train(
    name: str,
    spec: RunSpec,
    num_epochs: int,
    data: Data,
    folder: Path,
    *,
    store: Store,
    narrator: Narrator,
) -> float:
    """The validation accuracy after the first epochs of all phases, trained in `folder`.

    Every rung trains from the start: features are stored, so that costs the tail alone.
    """
    # Otherwise Keras keeps something of every model. It resets the dtype policy as well.
    keras.utils.clear_session()
    spec = override(spec, {"phases": _first_epochs(spec.phases, num_epochs)})
    set_up(spec.devices, seed=spec.seed)
    # Training tells the test accuracy of every phase. Here nobody may see the test pictures.
    splits = dataclasses.replace(data.splits, test=data.splits.val)
    aside = Aside(narrator, name)
    supply = Supply(spec, data.source, splits, store=store, narrator=aside)
    classifier = prepare_classifier(spec, data.records.class_names)
    with forgetting_graphs():
        run = RunFolder.create(folder)
        run.checkpoint_folder.mkdir()
        outcomes = fit_phases(classifier, supply, narrator=aside, run=run)
    return [outcome.val_accuracy for outcome in outcomes if outcome.kept][-1]


def _first_epochs(phases: Sequence[PhaseSpec], num_epochs: int) -> list[dict[str, object]]:
    """The phases that begin within the first epochs, the last of them cut short."""
    first = []
    for phase in phases:
        if num_epochs > 0:
            epochs = min(phase.epochs, num_epochs)
            # A phase of one epoch may be all warm-up, a longer one may not.
            warmup = min(phase.warmup_epochs, epochs - 1 if epochs > 1 else epochs)
            short = dataclasses.replace(phase, epochs=epochs, warmup_epochs=float(warmup))
            first.append(dataclasses.asdict(short))
        num_epochs -= phase.epochs
    return first


def agreement(
    finals: Sequence[Final], values: Mapping[str, Mapping[str, float]]
) -> dict[str, float | None]:
    """Weighted Kendall tau, -1 to 1, of each metric with the outcome; None where it has none.

    Who left early comes behind all that went further, in the order of the accuracies there.

    Args:
        finals: of which each has a value in every metric that counts.
        values: by metric and candidate.

    Source: S. Vigna, "A weighted correlation index for rankings with ties", WWW 2015.
    """
    outcomes = [(one.rung, one.val_accuracy) for one in finals]
    places = [sorted(set(outcomes)).index(outcome) for outcome in outcomes]
    result: dict[str, float | None] = {}
    for metric, by_name in values.items():
        if all(one.name in by_name for one in finals):
            foretold = [by_name[one.name] for one in finals]
            tau = float(weightedtau(foretold, places).statistic) if len(set(foretold)) > 1 else None
            result[metric] = None if tau is None or np.isnan(tau) else tau
    return result
