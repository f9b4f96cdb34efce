"""Trial runner: trains variants of one spec, one after another, on features that are stored once.

Studies, searches and the finals of a ranking all train through it.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.config import override, spec_to_dict
from keras_transfer.data.splits import Splits, make_folds
from keras_transfer.devices import forgetting_graphs, set_up
from keras_transfer.errors import DivergedError
from keras_transfer.experiments.session import Session
from keras_transfer.experiments.summary import describe_cache
from keras_transfer.features.phase_inputs import PhaseInputs, Pool, refits
from keras_transfer.methods.networks import prepare_classifier
from keras_transfer.methods.registry import check_repeatable, make_methods
from keras_transfer.models.classifier import Classifier, Rebuilder
from keras_transfer.reporting.reporter import Reporter, SilentReporter
from keras_transfer.specs import RunSpec, SearchSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.training.fitting import Outcome, fit_phases
from keras_transfer.training.refitting import Refit, initial_weights, refit

SINGLE: Final = {"folds": 1, "seeds": 1, "halvings": 0}
VIEW_COUNTS: Final = ("views_computed", "views_found", "views_trained_on")
_SAVE_SECONDS: Final = 10.0
"""Between two checkpoints of a trial: writing one takes a tenth of the time of a short epoch."""


@dataclass(frozen=True, eq=False)
class TrialResult:
    """Result of one spec on images that it was not trained on, after its last kept phase.

    These are the held-out images of all folds, or of a single split. `val_score` is the task's
    monitored metric, `val_loss` the mean loss, `epochs` those of all phases, the most of any fold.
    `outcomes` are the phases of all folds. `views` has the VIEW_COUNTS, counted as in cache.json.
    `outputs` float32 [N, K] and `scores` float64 [N], the task's of each image, are None unless
    predictions were requested.
    """

    val_score: float
    val_loss: float
    epochs: int
    seconds: float
    outcomes: tuple[Outcome, ...]
    views: dict[str, int]
    outputs: np.ndarray | None = None
    scores: np.ndarray | None = None

    @property
    def figures(self) -> dict[str, float]:
        """The figures by their names as objectives."""
        return {"val_score": self.val_score, "val_loss": self.val_loss}


def single_run(spec: RunSpec) -> RunSpec:
    """The spec of one training: without folds, repeats, halvings and search."""
    return dataclasses.replace(override(spec, SINGLE), search=SearchSpec())


def search_splits(session: Session) -> tuple[Splits, ...]:
    """The splits that candidates are compared on: the run's, or folds, without the test split.

    Raises:
        DataError: a class has too few images for the number of folds.
    """
    spec, data = session.spec, session.data
    if spec.folds == 1:
        return (without_test(data.splits),)
    test = data.splits.test
    return make_folds(data.records, spec.data, test, num_folds=spec.folds, seed=spec.seed)


def without_test(splits: Splits) -> Splits:
    """The same splits with an empty test split."""
    return dataclasses.replace(splits, test=splits.test[:0])


def held_out(splits: Splits) -> np.ndarray:
    """Rows that a trial is evaluated on: the test split, or the validation split without one."""
    return splits.test if len(splits.test) else splits.val


def pool_of(spec: RunSpec, splits: Sequence[Splits]) -> Pool:
    """The rows of all splits, whose features are stored together."""
    return Pool.of(*splits, refit=any(refits(spec, own) for own in splits))


class TrialRunner:
    """Trains specs of one session. All share its images and its cache, and one trunk in memory.

    `spec` is that of the session without folds, repeats and search: trials are variants of it.
    """

    def __init__(
        self, session: Session, splits: Sequence[Splits], *, states: RunFolder | None = None
    ):
        """Prepare trials, without training any.

        Args:
            splits: on each of which a spec is trained, and evaluated on the held-out rows.
            states: folder for checkpoints, so that a training can be resumed; None saves none.

        Raises:
            SpecError: a method has to train once only.
        """
        self.session, self.splits, self._states = session, tuple(splits), states
        self.spec = single_run(session.spec)
        self._rebuild = Rebuilder()
        check_repeatable(session.methods)

    def vary(self, values: Mapping[str, Any]) -> RunSpec:
        """The runner's spec with these values of dotted fields.

        Raises:
            SpecError: the values are inconsistent.
        """
        return override(self.spec, values)

    def state(self, spec: RunSpec, fold: int = 0) -> RunFolder | None:
        """The folder for the checkpoints of a spec; equal specs share it."""
        if self._states is None:
            return None
        text = json.dumps(spec_to_dict(spec), sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return RunFolder(self._states.path / f"{digest}-{fold}")

    def train(
        self,
        spec: RunSpec,
        *,
        splits: Sequence[Splits] | None = None,
        pool: Pool | None = None,
        num_epochs: int | None = None,
        reporter: Reporter | None = None,
        predict: bool = False,
        observe: Callable[[Classifier], None] | None = None,
    ) -> TrialResult:
        """Train a spec on each of the splits, or resume an earlier training of it.

        Args:
            splits: by default the runner's.
            pool: rows whose features are stored together, by default those of all splits.
            num_epochs: where to stop, counted over all phases; by default after the last one.
            predict: whether to fill in `outputs` and `scores`.
            observe: called with each trained classifier, whose layers the next training may use.

        Raises:
            DivergedError: a loss is not finite.
            RunError: features cannot be stored, or the disk is full.
        """
        started = time.perf_counter()
        splits = self.splits if splits is None else tuple(splits)
        reporter = reporter or self.session.reporter
        results = []
        for fold, own in enumerate(splits):
            # Otherwise Keras keeps memory of every model. Python collects garbage by itself;
            # doing it here would take a quarter of a second.
            keras.utils.clear_session(free_memory=False)
            set_up(spec.devices, seed=spec.seed)
            classifier = prepare_classifier(spec, self.session.task, build=self._rebuild)
            fitted = _fit(
                classifier,
                self._inputs(spec, own, pool or pool_of(spec, splits), reporter),
                reporter=reporter,
                state=self.state(spec, fold),
                num_epochs=num_epochs,
                predict=predict,
            )
            if observe:
                observe(classifier)
            results.append(fitted)
        sizes = [len(held_out(own)) for own in splits]
        return _merge(results, sizes, seconds=time.perf_counter() - started)

    def fit(
        self, classifier: Classifier, spec: RunSpec, *, num_epochs: int | None = None
    ) -> TrialResult:
        """Train an untrained classifier of the spec on the first of the splits; see `train`."""
        reporter, pool = SilentReporter(), pool_of(spec, self.splits)
        return _fit(
            classifier,
            self._inputs(spec, self.splits[0], pool, reporter),
            reporter=reporter,
            state=self.state(spec),
            num_epochs=num_epochs,
            predict=False,
        )

    def _inputs(self, spec: RunSpec, splits: Splits, pool: Pool, reporter: Reporter) -> PhaseInputs:
        data = self.session.data
        source = dataclasses.replace(data.source, views=spec.views)
        methods = make_methods(spec)
        check_repeatable(methods)
        return PhaseInputs(
            spec,
            source,
            splits,
            methods=methods,
            cache=self.session.cache,
            reporter=reporter,
            pool=pool,
            unlabelled=data.unlabelled,
            source_of=self.session.source_of,
        )


def _fit(
    classifier: Classifier,
    inputs: PhaseInputs,
    *,
    reporter: Reporter,
    state: RunFolder | None,
    num_epochs: int | None,
    predict: bool,
) -> TrialResult:
    """Train on one split and evaluate on the rows that it holds out."""
    started = time.perf_counter()
    with forgetting_graphs():
        outcomes, refitted = _train(classifier, inputs, reporter, state, num_epochs)
    score, loss = _figures(outcomes, refitted)
    if not math.isfinite(loss):
        raise DivergedError(
            "training diverged",
            expected="finite outputs",
            received=f"a loss of {loss}",
            fix="lower the learning rates",
        )
    outputs = scores = None
    if predict:
        rows, targets = held_out(inputs.splits), inputs.source.examples.targets
        outputs = inputs.predict(classifier, rows)
        task = classifier.task.scaled(targets.values[inputs.splits.train])
        scores = task.example_scores(targets.values[rows], outputs)
    usage = describe_cache(0, inputs.extraction_stats, outcomes, inputs.splits)
    return TrialResult(
        val_score=score,
        val_loss=loss,
        epochs=sum(outcome.epochs for outcome in outcomes),
        seconds=time.perf_counter() - started,
        outcomes=tuple(outcomes),
        views={name: usage[name] for name in VIEW_COUNTS},
        outputs=outputs,
        scores=scores,
    )


def _train(
    classifier: Classifier,
    inputs: PhaseInputs,
    reporter: Reporter,
    state: RunFolder | None,
    num_epochs: int | None,
) -> tuple[list[Outcome], Refit | None]:
    """Train all phases; a training that is not stopped earlier is refitted where that is due."""
    initial = initial_weights(classifier, inputs)
    outcomes = fit_phases(
        classifier,
        inputs,
        reporter=reporter,
        run=state,
        num_epochs=num_epochs,
        save_seconds=_SAVE_SECONDS,
    )
    if not inputs.refits or num_epochs is not None:
        return outcomes, None
    refitted = refit(
        classifier,
        inputs,
        outcomes,
        initial=initial,
        reporter=reporter,
        run=state,
        save_seconds=_SAVE_SECONDS,
    )
    return outcomes, refitted


def _figures(outcomes: Sequence[Outcome], refitted: Refit | None) -> tuple[float, float]:
    """Score and loss on the held-out rows, by the classifier as training left it."""
    if refitted and refitted.test_score is not None and refitted.test_loss is not None:
        return refitted.test_score, refitted.test_loss
    last = [outcome for outcome in outcomes if outcome.kept][-1]
    if last.test_score is not None and last.test_loss is not None:
        return last.test_score, last.test_loss
    return last.val_score, last.val_loss


def _merge(results: Sequence[TrialResult], sizes: Sequence[int], *, seconds: float) -> TrialResult:
    """One result of all folds, which held out `sizes` images."""
    figures = [(result.val_score, result.val_loss) for result in results]
    score, loss = np.average(figures, axis=0, weights=sizes)
    outputs = [one.outputs for one in results if one.outputs is not None]
    scores = [one.scores for one in results if one.scores is not None]
    return TrialResult(
        val_score=float(score),
        val_loss=float(loss),
        epochs=max(result.epochs for result in results),
        seconds=seconds,
        outcomes=tuple(outcome for result in results for outcome in result.outcomes),
        views={name: sum(result.views[name] for result in results) for name in VIEW_COUNTS},
        outputs=np.concatenate(outputs) if outputs else None,
        scores=np.concatenate(scores) if scores else None,
    )
