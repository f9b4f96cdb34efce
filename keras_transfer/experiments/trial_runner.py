"""Trial runner: trains variants of one spec, again and again, on features stored once."""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_transfer.config import override, spec_to_dict
from keras_transfer.data.splits import Splits, make_folds
from keras_transfer.devices import forgetting_graphs, set_up
from keras_transfer.errors import DivergedError
from keras_transfer.experiments.run import Data
from keras_transfer.experiments.study.trials import ONE_RUN
from keras_transfer.features.phase_inputs import PhaseInputs, Pool
from keras_transfer.models.classifier import Classifier, Rebuilder
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec, SearchSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.registry import make_task
from keras_transfer.training.fitting import Outcome, fit_phases, prepare_classifier

_SAVE_SECONDS = 10.0
"""A killed trial loses so much at most; writing every epoch takes a tenth of a short one."""


@dataclass(frozen=True, eq=False)
class Training:
    """How well one spec did: over all images it was judged on, none of them a test image.

    `val_loss` is the log loss in nats. `epochs` are those of all phases, the most of any fold.
    `right` bool [N] tells of each judged image whether it was named right, None where that was
    not asked for.
    """

    val_accuracy: float
    val_loss: float
    epochs: int
    seconds: float
    views_computed: int
    right: np.ndarray | None

    @property
    def figures(self) -> dict[str, float]:
        """What is compared, by the names that objectives have."""
        return {"val_accuracy": self.val_accuracy, "val_loss": self.val_loss}


@dataclass(frozen=True, eq=False)
class Fit:
    """One fold's training: figures of the judged rows after the last phase that was kept."""

    accuracy: float
    loss: float
    epochs: int
    views_computed: int
    right: np.ndarray | None


class TrialRunner:
    """Trains a spec with some of its fields changed, and judges it on validation alone.

    With `spec.folds` above 1 every image outside the test split is judged once, by the training
    that held it out. The test split is never looked at. One training at a time: all of them share
    one trunk. `original` is the spec with its search, `spec` what trainings are made of.
    """

    def __init__(
        self, spec: RunSpec, data: Data, *, cache: Cache, states: RunFolder, reporter: Reporter
    ):
        """`states` is where trainings are kept, so that longer ones go on from shorter ones."""
        self.original = spec
        self.spec = dataclasses.replace(override(spec, ONE_RUN), search=SearchSpec())
        self.data, self._cache, self._states, self._reporter = data, cache, states, reporter
        self.splits = _draw(spec, data)
        self._pool = Pool.of(*self.splits)
        self._rebuild = Rebuilder()

    def vary(self, values: Mapping[str, Any]) -> RunSpec:
        """The trial runner's spec with these values.

        Raises:
            SpecError: they contradict each other.
        """
        return override(self.spec, values)

    def state(self, spec: RunSpec, fold: int = 0) -> RunFolder:
        """Where the training of a spec from `vary` is kept; equal specs share it."""
        text = json.dumps(spec_to_dict(spec), sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return RunFolder(self._states.path / f"{digest}-{fold}")

    def train(
        self,
        spec: RunSpec,
        *,
        num_epochs: int | None = None,
        reporter: Reporter | None = None,
        tell_each: bool = False,
    ) -> Training:
        """Train a spec from `vary`, or go on with it, up to `num_epochs` of all its phases.

        Args:
            tell_each: fill in `Training.right`.

        Raises:
            DivergedError: losses left the finite numbers.
            RunError: features cannot be stored, or the disk is full.
        """
        started = time.perf_counter()
        listener = reporter or self._reporter
        fits = []
        for fold in range(len(self.splits)):
            # Otherwise Keras keeps something of every model. Garbage is left to Python, which
            # looks for it as it grows: looking here would take a quarter of a second.
            keras.utils.clear_session(free_memory=False)
            set_up(spec.devices, seed=spec.seed)
            task = make_task(spec, self.data.records.items)
            classifier = prepare_classifier(spec, task, build=self._rebuild)
            fits.append(
                self.fit(
                    classifier,
                    spec,
                    listener,
                    fold=fold,
                    num_epochs=num_epochs,
                    tell_each=tell_each,
                )
            )
        sizes = [len(_judged(splits)) for splits in self.splits]
        accuracy, loss = np.average([(f.accuracy, f.loss) for f in fits], axis=0, weights=sizes)
        return Training(
            val_accuracy=float(accuracy),
            val_loss=float(loss),
            epochs=max(fit.epochs for fit in fits),
            seconds=time.perf_counter() - started,
            views_computed=sum(fit.views_computed for fit in fits),
            right=np.concatenate([f.right for f in fits if f.right is not None])
            if tell_each
            else None,
        )

    def fit(
        self,
        classifier: Classifier,
        spec: RunSpec,
        reporter: Reporter,
        *,
        fold: int = 0,
        num_epochs: int | None = None,
        tell_each: bool = False,
    ) -> Fit:
        """Train the untrained classifier of a spec from `vary` on one fold; see `train`."""
        splits = self.splits[fold]
        source = dataclasses.replace(self.data.source, views=spec.views)
        phase_inputs = PhaseInputs(
            spec, source, splits, cache=self._cache, reporter=reporter, pool=self._pool
        )
        with forgetting_graphs():
            outcomes = fit_phases(
                classifier,
                phase_inputs,
                reporter=reporter,
                run=self.state(spec, fold),
                num_epochs=num_epochs,
                save_seconds=_SAVE_SECONDS,
            )
        accuracy, loss = _figures(outcomes)
        if not math.isfinite(loss):
            raise DivergedError(
                "training diverged",
                expected="finite probabilities",
                received=f"a log loss of {loss}",
                fix="lower the learning rates",
            )
        right = None
        if tell_each:
            rows = _judged(splits)
            answers = phase_inputs.predict(classifier, rows).argmax(axis=1)
            right = answers == self.data.examples.labels[rows]
        epochs = sum(outcome.epochs for outcome in outcomes)
        computed = sum(stats.num_computed for stats in phase_inputs.extraction_stats)
        return Fit(accuracy, loss, epochs, computed, right)


def _draw(spec: RunSpec, data: Data) -> tuple[Splits, ...]:
    """Folds around the test split, or the run's own splits without it."""
    splits = data.splits
    if spec.folds == 1:
        return (dataclasses.replace(splits, test=splits.test[:0]),)
    return make_folds(data.records, spec.data, splits.test, num_folds=spec.folds, seed=spec.seed)


def _judged(splits: Splits) -> np.ndarray:
    """Rows that a training is judged on: those its fold held out, else the validation split."""
    return splits.test if len(splits.test) else splits.val


def _figures(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Accuracy and log loss on the judged rows, by the classifier as the phases left it."""
    last = [outcome for outcome in outcomes if outcome.kept][-1]
    if last.test_score is not None and last.test_loss is not None:
        return last.test_score, last.test_loss
    return last.val_score, last.val_loss
