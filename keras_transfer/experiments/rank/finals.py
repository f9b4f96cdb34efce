"""Finals of a ranking: successive halving among the best candidates, which are fine-tuned.

    rung 1: all, a quarter of the epochs → rung 2: the better half, half of the epochs → rung 3: the
    better half of these, all epochs

Candidates are compared on the validation split. A weighted Kendall tau measures how well each
metric predicted the outcome; for two or three finalists it is not reliable.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import weightedtau

from keras_transfer.evaluation.intervals import Interval, wilson
from keras_transfer.experiments.session import Session
from keras_transfer.experiments.trial_runner import (
    TrialRunner,
    single_run,
    without_test,
)
from keras_transfer.reporting.reporter import PrefixedReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder

_SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Finalist:
    """One candidate's last rung, counted from 1, and its epochs and validation accuracy there."""

    name: str
    rung: int
    num_epochs: int
    val_accuracy: float
    val_interval: Interval
    seconds: float


def run_finals(chosen: Sequence[tuple[str, RunSpec]], session: Session) -> tuple[Finalist, ...]:
    """Successive halving among candidates; the best comes first.

    Args:
        chosen: names and specs, two or more; all have the same phases and data.

    Raises:
        RunError: training diverged, or features cannot be stored.

    Source: K. Jamieson and A. Talwalkar, "Non-stochastic best arm identification and
    hyperparameter optimization", AISTATS 2016.
    """
    specs = {name: single_run(spec) for name, spec in chosen}
    splits, total = without_test(session.data.splits), chosen[0][1].num_epochs
    reached: dict[str, Finalist] = {}
    left, num_val = list(specs), len(splits.val)
    with tempfile.TemporaryDirectory(prefix="finals-") as scratch:
        # A candidate continues from the previous rung.
        runner = TrialRunner(session, [splits], states=RunFolder(Path(scratch)))
        for rung, share in enumerate(_SHARES, 1):
            if len(left) == 1 and share < 1:
                continue  # A single candidate needs no comparison.
            num_epochs = math.ceil(share * total)
            for name in left:
                reporter = PrefixedReporter(session.reporter, name)
                result = runner.train(specs[name], num_epochs=num_epochs, reporter=reporter)
                before = reached[name].seconds if name in reached else 0.0
                reached[name] = Finalist(
                    name,
                    rung,
                    result.epochs,
                    result.val_score,
                    wilson(round(result.val_score * num_val), num_val),
                    before + result.seconds,
                )
                session.reporter.info(
                    f"Rung {rung}, {name}: validation accuracy {result.val_score:.1%} after "
                    f"{result.epochs} of {total} epochs, {result.seconds:.0f} s."
                )
            left.sort(key=lambda name: -reached[name].val_accuracy)
            left = left[: math.ceil(len(left) / 2)]
    return tuple(sorted(reached.values(), key=lambda one: (-one.rung, -one.val_accuracy)))


def agreement(
    finals: Sequence[Finalist], values: Mapping[str, Mapping[str, float]]
) -> dict[str, float | None]:
    """Weighted Kendall tau, -1 to 1, of each metric with the outcome; None if it is undefined.

    Finalists that were stopped earlier rank behind the others, by their accuracies at that rung.

    Args:
        finals: metrics that lack a value for any of them are left out.
        values: by metric and candidate.

    Source: S. Vigna, "A weighted correlation index for rankings with ties", WWW 2015.
    """
    outcomes = [(one.rung, one.val_accuracy) for one in finals]
    places = [sorted(set(outcomes)).index(outcome) for outcome in outcomes]
    result: dict[str, float | None] = {}
    for metric, by_name in values.items():
        if all(one.name in by_name for one in finals):
            predicted = [by_name[one.name] for one in finals]
            tau = (
                float(weightedtau(predicted, places).statistic) if len(set(predicted)) > 1 else None
            )
            result[metric] = None if tau is None or np.isnan(tau) else tau
    return result
