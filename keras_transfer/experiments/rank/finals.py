"""Finals of a ranking: the best candidates are fine-tuned, the worse half leaving at each rung.

    rung 1: all, a quarter of the epochs → rung 2: the better half, a half → rung 3: of these the
    better half, to the end

Judged on validation alone. How the outcome agrees with what each metric foretold is told as a
weighted Kendall tau, which says little about two or three.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import weightedtau

from keras_transfer.evaluation.intervals import Interval, wilson
from keras_transfer.experiments.run import Data
from keras_transfer.experiments.trial_runner import TrialRunner
from keras_transfer.reporting.reporter import PrefixedReporter, Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.run_folder import RunFolder

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
    chosen: Sequence[tuple[str, RunSpec]], data: Data, *, cache: Cache, reporter: Reporter
) -> tuple[Final, ...]:
    """Successive halving among candidates; the winner comes first.

    Args:
        chosen: names and specs, two or more; all have the same phases and data.

    Raises:
        RunError: training diverged, or features cannot be stored.

    Source: K. Jamieson and A. Talwalkar, "Non-stochastic best arm identification and
    hyperparameter optimization", AISTATS 2016.
    """
    total = chosen[0][1].num_epochs
    reached: dict[str, Final] = {}
    racing, num_val = [name for name, _ in chosen], len(data.splits.val)
    with tempfile.TemporaryDirectory(prefix="finals-") as scratch:
        # A trial runner trains on from where the rung before ended, and never sees the test split.
        benches = {
            name: TrialRunner(
                spec, data, cache=cache, states=RunFolder(Path(scratch)), reporter=reporter
            )
            for name, spec in chosen
        }
        for rung, share in enumerate(_SHARES, 1):
            if len(racing) == 1 and share < 1:
                continue  # Nobody is left to be compared with.
            num_epochs = math.ceil(share * total)
            for name in racing:
                training = benches[name].train(
                    benches[name].spec,
                    num_epochs=num_epochs,
                    reporter=PrefixedReporter(reporter, name),
                )
                before = reached[name].seconds if name in reached else 0.0
                reached[name] = Final(
                    name,
                    rung,
                    training.epochs,
                    training.val_accuracy,
                    wilson(round(training.val_accuracy * num_val), num_val),
                    before + training.seconds,
                )
                reporter.info(
                    f"Rung {rung}, {name}: validation accuracy {training.val_accuracy:.1%} after "
                    f"{training.epochs} of {total} epochs, {training.seconds:.0f} s."
                )
            racing.sort(key=lambda name: -reached[name].val_accuracy)
            racing = racing[: math.ceil(len(racing) / 2)]
    return tuple(sorted(reached.values(), key=lambda one: (-one.rung, -one.val_accuracy)))


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
