"""The best model within a time budget: trunks, views and fine-tuning, while there is time.

open_session → trunks, timed → solved heads out of fold → trunks side by side → views →
fine-tuning → run_transfer

Where one epoch of fine-tuning of the fastest trunk has a clearly lower loss than its solved head,
that trunk is fine-tuned at once, and no other is tried.

Nothing is started unless its predicted seconds fit in front of the final run. All trials share
the cache, and the final run finds the features of the chosen trunk in it.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import keras

from keras_transfer.backbones.combination import SEPARATOR
from keras_transfer.config import check_single_training, override
from keras_transfer.data.splits import make_folds
from keras_transfer.devices.hosts import check_one_host
from keras_transfer.errors import DivergedError, SpecError
from keras_transfer.evaluation.intervals import Interval, bootstrap
from keras_transfer.experiments.auto.budget import Budget
from keras_transfer.experiments.auto.candidates import (
    Candidate,
    find_backbones,
    side_by_side,
    time_candidates,
)
from keras_transfer.experiments.auto.epoch_timer import EpochTimer, TimingReporter
from keras_transfer.experiments.auto.image_size import for_small_images
from keras_transfer.experiments.run import run_transfer
from keras_transfer.experiments.session import Session, open_session
from keras_transfer.experiments.summary import Result
from keras_transfer.experiments.trial_runner import (
    TrialResult,
    TrialRunner,
    pool_of,
    single_run,
    without_test,
)
from keras_transfer.reporting.numbers import short
from keras_transfer.reporting.reporter import PrefixedReporter, Reporter, TerminalReporter
from keras_transfer.specs import HEAD, TWO_PHASES, AutoSpec, RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run, vacated_on_refusal, write_spec
from keras_transfer.tasks.registry import read_task

RATES: Final = (1e-3, 3e-4)
"""Learning rates of the last stage; the better one is then used for the last two stages."""
SHORTER: Final = (1.0, 0.6, 0.4)
"""Shares of its epochs that a promising fine-tuning may be given: the most that fit."""
LEAST_IMAGES: Final = TWO_PHASES[1].min_images
"""Training images below which no fine-tuning is tried before other trunks, as in the default."""
PROMISING_SHARE: Final = 0.35
"""Most of the budget that its first epoch may take, with the features for it."""
PROMISING_LOSS: Final = 0.95
"""After one epoch, in which rates only rise, a validation loss below this share of the head's is
promising: on CIFAR-10 it was 0.89 times as high, and ten epochs gained 12 points."""
VIEWS: Final = 4
"""Views that are compared with one, where the spec's own number is not finite or is 1."""

RESERVED_SHARE: Final = 0.1
FINAL_SECONDS: Final = 10.0
FINAL_TRIALS: Final = 2.0
"""The final run is predicted to take FINAL_SECONDS and FINAL_TRIALS times as long as the last
cross-validation without its features, which shows how fast the machine is at present; at least
RESERVED_SHARE of the budget is kept for it."""
TRIAL_SECONDS: Final = 10.0
"""Predicted time of the first trial, apart from its features; later ones take as long as it."""
GROWTH: Final = 1.5
"""The time of a trial grows by this power of the number of trunks side by side."""
SPLIT_SHARE: Final = 0.5
"""Predicted time of the first trial on one split, as a share of that on all folds: the trunk is
built once for both."""
TRAINING_PASSES: Final = 3
"""Predicted time of an image in the first epoch, in forward passes through all frozen layers:
backward passes take about twice as long as forward ones, and fewer layers train."""

Step = Literal["backbone", "views", "fine-tuning"]


@dataclass(frozen=True)
class Attempt:
    """One choice with its evidence; what was not tried or has no such figure is None.

    Trunks and views are compared out of fold, by the mean of the task's example scores:
    `difference` is to the best before, `interval` its 95 % interval over images. Fine-tuning is
    compared by `loss` on the validation split. `reason` says why it was chosen or not.
    """

    step: Step
    name: str
    reason: str
    is_chosen: bool = False
    predicted_seconds: float | None = None
    seconds: float | None = None
    score: float | None = None
    loss: float | None = None
    difference: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True, eq=False)
class AutoResult:
    """All attempts and the final run, of the spec `spec`, which is called `name`.

    `search_seconds` are those before the final run, for which `reserved_seconds` were predicted.
    """

    name: str
    spec: RunSpec
    auto: AutoSpec
    attempts: tuple[Attempt, ...]
    result: Result
    budget: Budget
    search_seconds: float
    reserved_seconds: float
    seconds: float
    was_interrupted: bool


@dataclass(frozen=True, eq=False)
class Best:
    """The best so far: its out-of-fold result, and the fine-tuning that its refit repeats.

    `is_tuned`: the spec fine-tunes, and its checkpoints are those that the final run resumes.
    """

    name: str
    spec: RunSpec
    candidate: Candidate
    result: TrialResult
    refit_seconds: float = 0.0
    is_tuned: bool = False


def run_auto(
    spec: RunSpec,
    auto: AutoSpec,
    run: RunFolder | None = None,
    *,
    budget: Budget | None = None,
    reporter: Reporter | None = None,
) -> AutoResult:
    """Find the best model that the time allows, and make its run; Ctrl-C ends the search early.

    Args:
        spec: the images and all fields that are not chosen here; its search is not used, nor are
            its phases, except for an exact first one.
        run: from `start_run`, new; by default a new one under saved_models/.
        budget: of `auto.time_budget`, if it began earlier.
        reporter: shows decisions and progress; by default on the terminal.

    Raises:
        SpecError: the budget is too short, a trunk is unknown, none can be used, or the spec is
            that of a study.
        DataError, WeightsError, RunError, ExportError: as for a run.
    """
    budget = budget or Budget.start(auto.time_budget)
    reporter = reporter or TerminalReporter()
    run = run or start_run(spec, suffix="")
    with vacated_on_refusal(run):
        check_one_host(spec.devices, "auto")
        check_single_training(
            spec,
            "auto compares by folds of its own",
            fix="leave these fields out",
            hint="; auto.folds is the number of folds",
        )
        names = find_backbones(spec, auto)
        task, records = read_task(spec)
        head = for_small_images(_head_spec(spec), records, reporter)
        with open_session(head, reporter=reporter, run=run, task=task, records=records) as session:
            candidates = time_candidates(
                names, session.spec, auto, task=session.task, budget=budget
            )
            search = Search(session, auto, run=run, budget=budget)
            was_interrupted = search.run(candidates)
    best = search.best
    assert best
    reserved, search_seconds = search.reserve(best), budget.spent
    reporter.info(f"The final run is {best.name}; {budget.left:.0f} s are left for it.")
    result = _finish(best, search.own.state(best.spec), run, reporter)
    return AutoResult(
        name=best.name,
        spec=best.spec,
        auto=auto,
        attempts=tuple(search.attempts),
        result=result,
        budget=budget,
        search_seconds=search_seconds,
        reserved_seconds=reserved,
        seconds=budget.spent,
        was_interrupted=was_interrupted,
    )


def _head_spec(spec: RunSpec) -> RunSpec:
    """The spec with a solved head on plain images: what every trunk starts with."""
    first = spec.phases[0]
    is_exact_head = first.method == TWO_PHASES[0].method and first.unfreeze == HEAD
    head = first if is_exact_head else TWO_PHASES[0]
    views = spec.views.count if spec.views.count and spec.views.count > 1 else VIEWS
    alone = replace(single_run(spec), phases=(head,))
    return override(alone, {"views.count": views})


def _finish(best: Best, state: RunFolder | None, run: RunFolder, reporter: Reporter) -> Result:
    """The run of the best; it resumes the training of a fine-tuning, and refits it."""
    write_spec(run, best.spec)
    if best.is_tuned and state:
        shutil.copytree(state.checkpoint_folder, run.checkpoint_folder, dirs_exist_ok=True)
    # Layers that Keras numbers then get the same names as in the trial.
    keras.utils.clear_session()
    return run_transfer(best.spec, run, reporter=reporter)


class Search:
    """Tries trunks, views and fine-tuning on one session, and keeps the best."""

    def __init__(self, session: Session, auto: AutoSpec, *, run: RunFolder, budget: Budget):
        """Read the images and draw the folds.

        Raises:
            SpecError: there is no cache.
            DataError: the images cannot be used, or are too few for the folds.
        """
        if session.spec.cache.mode == "off":
            raise SpecError(
                "auto needs the cache: all trials read the same features",
                expected="cache.mode=auto and room for the images",
                received=f"cache.mode=off, or cache.limit_gb={session.spec.cache.limit_gb:g}",
                fix="leave out cache.mode, or raise cache.limit_gb",
            )
        spec, data = session.spec, session.data
        test = data.splits.test
        folds = make_folds(data.records, spec.data, test, num_folds=auto.folds, seed=spec.seed)
        session.write_splits()
        self.session, self.auto, self.budget = session, auto, budget
        self.best: Best | None = None
        self._heads: list[Best] = []
        self.attempts: list[Attempt] = []
        self.folds = TrialRunner(session, folds)
        # Trials of the own split are resumed, by the rest of their epochs and by the final run.
        self.own = TrialRunner(
            session, [without_test(data.splits)], states=RunFolder(run.checkpoint_folder)
        )
        self._num_test = len(test)
        self._trial_seconds = self._single_seconds = TRIAL_SECONDS
        self._split_seconds = SPLIT_SHARE * TRIAL_SECONDS
        self._epoch_seconds: dict[str, float] = {}

    def run(self, candidates: Sequence[Candidate]) -> bool:
        """Try everything that fits, until Ctrl-C; returns whether it was pressed.

        Raises:
            KeyboardInterrupt: before there is any model.
        """
        try:
            for candidate in candidates:
                if candidate.reason:
                    self._record(Attempt("backbone", candidate.backbone, candidate.reason))
                else:
                    self._try_head("backbone", candidate, 1)
                    if len(self._heads) == 1 and self._fine_tune_at_once(self._heads[0]):
                        return False
            assert self.best
            self._combine()
            self._try_head("views", self.best.candidate, self.session.spec.views.count or VIEWS)
            self._fine_tune()
        except KeyboardInterrupt:
            if not self.best:
                raise
            self.session.reporter.info(
                "Interrupted: the best model so far is finished. Ctrl-C again stops that, too."
            )
            return True
        return False

    def reserve(self, best: Best, trial_seconds: float | None = None) -> float:
        """Seconds that the final run is predicted to need, after a trial of so many seconds."""
        candidate = best.candidate
        trial = self._trial_seconds if trial_seconds is None else trial_seconds
        own = FINAL_SECONDS + FINAL_TRIALS * trial + best.refit_seconds
        own += self._num_test * candidate.ms_per_image / 1000
        return max(own, RESERVED_SHARE * self.budget.seconds)

    def _fits(self, best: Best, predicted: float, trial_seconds: float | None = None) -> bool:
        return predicted <= self.budget.left - self.reserve(best, trial_seconds)

    def _skip(self, step: Step, name: str, predicted: float) -> None:
        reason = f"not tried: it would take about {predicted:.0f} s"
        self._record(Attempt(step, name, reason, predicted_seconds=predicted))

    def _record(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        self.session.reporter.info(
            f"{attempt.name}: {attempt.reason}; {self.budget.left:.0f} s are left."
        )

    def _try_head(self, step: Step, candidate: Candidate, views: int) -> None:
        """Compare the solved head of a trunk, out of fold, with the best so far."""
        name = f"{candidate.backbone}, {views} view{'s' if views > 1 else ''}"
        changes = {"model.backbone": candidate.backbone, "views.count": views}
        # A refit of every fold would double the time, and helps all candidates alike.
        spec = self.folds.vary({**changes, "training.refit": False})
        pool, best = pool_of(spec, self.folds.splits), self.best
        # Plain images are stored by now, except of a trunk that was never tried.
        is_stored = step == "views" or not candidate.stages
        num_new = len(pool.pairs(views)) - (len(pool.pairs(1)) if is_stored else 0)
        num_trunks = 1 + candidate.backbone.count(SEPARATOR)
        trial = self._single_seconds * num_trunks**GROWTH if num_trunks > 1 else self._trial_seconds
        predicted = num_new * candidate.ms_per_image / 1000 + trial
        if best and not self._fits(replace(best, candidate=candidate), predicted, trial):
            self._skip(step, name, predicted)
            return
        started = self.budget.spent
        result = self.folds.train(
            spec, reporter=PrefixedReporter(self.session.reporter, name), predict=True
        )
        seconds = self.budget.spent - started
        computing = result.views["views_computed"] * candidate.ms_per_image / 1000
        self._trial_seconds = max(0.0, seconds - computing)
        if num_trunks == 1:
            self._single_seconds = self._trial_seconds
        attempt = Attempt(step, name, "the first", True, predicted, seconds)
        if best:
            attempt = replace(attempt, **_compare(result, best.result))
        self._heads.append(Best(name, self.folds.vary(changes), candidate, result))
        if attempt.is_chosen:
            self.best = self._heads[-1]
        self._record(replace(attempt, score=result.val_score, loss=result.val_loss))

    def _combine(self) -> None:
        """Add one trunk after another to the best, in their order; those that help stay.

        Out of fold, as all heads. The features of all trunks are stored, so that an attempt costs
        little more than its solution.
        """
        first, *others = sorted(self._heads, key=lambda head: _rank(head.result))
        joined = first.candidate
        for other in others:
            candidate = side_by_side(joined, other.candidate, self.auto)
            if candidate.reason:
                self._record(Attempt("backbone", candidate.backbone, candidate.reason))
                continue
            try:
                self._try_head("backbone", candidate, 1)
            except SpecError as error:  # Their feature maps may differ in size.
                self._record(Attempt("backbone", candidate.backbone, error.what))
            if self.best and self.best.candidate is candidate:
                joined = candidate

    def _fine_tune_at_once(self, head: Best) -> bool:
        """Fine-tune the last two stages of a trunk, if one epoch of that promises much.

        Only where there are as many images as the default fine-tuning asks for. The number of
        views, the number of epochs and the refit are the most that fit.
        """
        stages, num_train = head.candidate.stages, len(self.session.data.splits.train)
        if len(stages) < 2 or num_train < LEAST_IMAGES:
            return False
        name = f"fine-tune {stages[-2]}, learning rate {short(RATES[0])}"
        viewed = self._with_views(head, num_train)
        if viewed is None:
            self._record(Attempt("fine-tuning", name, "not tried: one epoch takes too long"))
            return False
        alone, _ = self._train_alone(viewed)
        spec, started = self._fine_tuning_spec(viewed.spec, stages[-2], RATES[0]), self.budget.spent
        begun, epoch = self._begin(spec, name, head_epochs=alone.epochs)
        attempt = Attempt(
            "fine-tuning",
            f"{name}, one epoch",
            "promises little",
            seconds=self.budget.spent - started,
            score=begun.val_score,
            loss=begun.val_loss,
        )
        if begun.val_loss >= PROMISING_LOSS * alone.val_loss:
            self._record(attempt)
            return False
        self._record(replace(attempt, reason="promises much"))
        return self._complete(viewed, spec, name, alone, epoch)

    def _with_views(self, head: Best, num_train: int) -> Best | None:
        """The head with as many views as leave time for an epoch; None if one is too many."""
        for views in (self.session.spec.views.count or VIEWS, 1):
            ms = (views + TRAINING_PASSES) * num_train * head.candidate.ms_per_image
            if ms / 1000 + 2 * self._split_seconds <= PROMISING_SHARE * self.budget.seconds:
                return replace(head, spec=override(head.spec, {"views.count": views}))
        return None

    def _complete(
        self, head: Best, spec: RunSpec, name: str, alone: TrialResult, epoch: float
    ) -> bool:
        """Train a promising fine-tuning to its end, or a shorter one without refit if that fits."""
        splits, phase = self.session.data.splits, spec.phases[-1]
        share = (len(splits.train) + len(splits.val)) / len(splits.train)
        for refits, part in ((spec.training.refit, 1.0), *((False, part) for part in SHORTER)):
            epochs = max(1, round(part * phase.epochs))
            changed = override(
                replace(spec, phases=(*spec.phases[:-1], replace(phase, epochs=epochs))),
                {"training.refit": refits},
            )
            refit_seconds = share * epochs * epoch if refits else 0.0
            tuned = replace(
                head,
                name=f"{head.name}, {name}",
                spec=changed,
                is_tuned=True,
                refit_seconds=refit_seconds,
            )
            predicted, started = epochs * epoch + self._split_seconds, self.budget.spent
            if not self._fits(tuned, predicted):
                continue
            reporter = PrefixedReporter(self.session.reporter, name)
            result = self.own.train(changed, reporter=reporter)
            is_better = result.val_loss < alone.val_loss
            self._record(
                Attempt(
                    "fine-tuning",
                    f"{name}, {epochs} epochs{'' if refits else ', no refit'}",
                    "lower validation loss" if is_better else "no lower validation loss",
                    is_chosen=is_better,
                    predicted_seconds=predicted,
                    seconds=self.budget.spent - started,
                    score=result.val_score,
                    loss=result.val_loss,
                )
            )
            if is_better:
                self.best = tuned
            return is_better
        self._skip("fine-tuning", name, phase.epochs * epoch)
        return False

    def _fine_tune(self) -> None:
        """Train stages from the solved head on; the lowest validation loss is chosen."""
        head = self.best
        assert head
        if not head.candidate.stages:
            reason = "not tried: backbones that are combined stay frozen"
            self._record(Attempt("fine-tuning", "fine-tuning", reason))
            return
        predicted = SPLIT_SHARE * self._trial_seconds
        if not self._fits(head, predicted):
            self._skip("fine-tuning", "fine-tuning", predicted)
            return
        alone, self._split_seconds = self._train_alone(head, predicted)
        losses = {rate: self._try_fine_tuning(head, alone, "last", rate) for rate in RATES}
        tried = {rate: loss for rate, loss in losses.items() if loss is not None}
        if tried and len(head.candidate.stages) > 1:
            rate = min(tried, key=lambda rate: tried[rate])
            self._try_fine_tuning(head, alone, head.candidate.stages[-2], rate)

    def _train_alone(self, head: Best, predicted: float | None = None) -> tuple[TrialResult, float]:
        """The head on the own split, with which fine-tuning is compared, and its seconds."""
        started = self.budget.spent
        alone = self.own.train(head.spec, reporter=PrefixedReporter(self.session.reporter, "head"))
        seconds = self.budget.spent - started
        self._record(
            Attempt(
                "fine-tuning",
                "the head alone",
                "the first",
                is_chosen=True,
                predicted_seconds=predicted,
                seconds=seconds,
                score=alone.val_score,
                loss=alone.val_loss,
            )
        )
        return alone, seconds

    def _try_fine_tuning(
        self, head: Best, alone: TrialResult, unfreeze: str, rate: float
    ) -> float | None:
        """Train one configuration and compare it with those before; its validation loss."""
        name = f"fine-tune {unfreeze}, learning rate {short(rate)}"
        spec, started = self._fine_tuning_spec(head.spec, unfreeze, rate), self.budget.spent
        tuned = replace(head, name=f"{head.name}, {name}", spec=spec, is_tuned=True)
        try:
            trained = self._train_if_it_fits(tuned, name, head_epochs=alone.epochs)
        except DivergedError as error:
            self._record(Attempt("fine-tuning", name, error.what))
            return None
        if trained is None:
            return None
        tuned, result, predicted = trained
        chosen = [x for x in self.attempts if x.step == "fine-tuning" and x.is_chosen]
        lowest = min(one.loss for one in chosen if one.loss is not None)
        attempt = Attempt(
            "fine-tuning",
            name,
            "no lower validation loss",
            predicted_seconds=predicted,
            seconds=self.budget.spent - started,
            score=result.val_score,
            loss=result.val_loss,
        )
        if result.val_loss < lowest:
            self.best = tuned
            attempt = replace(attempt, reason="lower validation loss", is_chosen=True)
        self._record(attempt)
        return result.val_loss

    def _train_if_it_fits(
        self, tuned: Best, name: str, *, head_epochs: int
    ) -> tuple[Best, TrialResult, float] | None:
        """Train one epoch, if that fits, and then the others, if those and their refit fit.

        Returns:
            `tuned` with the seconds of its refit, its result, and the predicted seconds.
        """
        spec, splits = tuned.spec, self.session.data.splits
        num_train, num_epochs = len(splits.train), spec.phases[-1].epochs
        num_views = len(pool_of(spec, self.own.splits).pairs(spec.views.count or 1))
        ms = (num_views + TRAINING_PASSES * num_train) * tuned.candidate.ms_per_image
        share = (num_train + len(splits.val)) / num_train if spec.training.refit else 0.0
        unfreeze = spec.phases[-1].unfreeze
        # Of stages that have not been trained yet, only the first epoch is predicted.
        epoch = self._epoch_seconds.get(unfreeze, 0.0)
        first = ms / 1000 + self._split_seconds + (num_epochs - 1) * epoch
        if not self._fits(replace(tuned, refit_seconds=share * num_epochs * epoch), first):
            self._skip("fine-tuning", name, first)
            return None
        _, epoch = self._begin(spec, name, head_epochs=head_epochs)
        self._epoch_seconds[unfreeze] = epoch
        rest = (num_epochs - 1) * epoch + self._split_seconds
        tuned = replace(tuned, refit_seconds=share * num_epochs * epoch)
        if not self._fits(tuned, rest):
            self._skip("fine-tuning", name, rest)
            return None
        predicted = ms / 1000 + self._split_seconds + rest
        reporter = PrefixedReporter(self.session.reporter, name)
        return tuned, self.own.train(spec, reporter=reporter), predicted

    def _begin(self, spec: RunSpec, name: str, *, head_epochs: int) -> tuple[TrialResult, float]:
        """Train the first epoch of a fine-tuning; its result, and seconds of a further one."""
        timer = EpochTimer()
        reporter = TimingReporter(self.session.reporter, name, timer)
        begun = self.own.train(spec, num_epochs=head_epochs + 1, reporter=reporter)
        # An epoch that an earlier trial trained is not timed again.
        return begun, timer.seconds or begun.outcomes[-1].seconds

    def _fine_tuning_spec(self, spec: RunSpec, unfreeze: str, rate: float) -> RunSpec:
        """The spec of a head, with a second phase."""
        # Whatever the number of images: the validation loss decides.
        phase = replace(TWO_PHASES[1], unfreeze=unfreeze, learning_rate=rate, min_images=0)
        return replace(spec, phases=(*spec.phases, phase))


def _rank(result: TrialResult) -> tuple[float, float]:
    """Lower is better: by the mean of the example scores, then by the loss."""
    assert result.scores is not None
    return -float(result.scores.mean()), result.val_loss


def _compare(result: TrialResult, best: TrialResult) -> dict[str, Any]:
    """The fields of an attempt that compare it with the best, image by image."""
    assert result.scores is not None
    assert best.scores is not None
    differences = result.scores - best.scores
    num_images, mean = len(differences), float(differences.mean())
    ends = bootstrap(
        lambda counts: (counts @ differences / num_images)[:, None], num_images, seed=0
    )
    is_better = (mean, -result.val_loss) > (0.0, -best.val_loss)
    return {
        "difference": mean,
        "interval": (float(ends[0, 0]), float(ends[1, 0])),
        "is_chosen": is_better,
        "reason": "better" if is_better else "not better",
    }
