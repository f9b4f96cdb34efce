"""A search: many trainings of one spec with different values, on features that are stored once.

spec and its space → session and trial runner → trials by KerasTuner → best trial → report
"""

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keras_transfer.data.records import Records
from keras_transfer.devices.hosts import check_one_host
from keras_transfer.errors import RunError, SpecError
from keras_transfer.experiments.tune.best import Winner, select_best
from keras_transfer.experiments.tune.plan import Plan, describe_plan
from keras_transfer.experiments.tune.progress_table import live_progress_table
from keras_transfer.experiments.tune.record import (
    SearchTrial,
    TrialLog,
    higher_is_better,
    ranked,
)
from keras_transfer.experiments.tune.space import check_space
from keras_transfer.experiments.tune.workers import (
    open_trial_runner,
    run_trials,
    run_workers,
)
from keras_transfer.fields import parse_duration
from keras_transfer.reporting.reporter import Reporter, TerminalReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run, vacated_on_refusal
from keras_transfer.tasks.task import Task

SUFFIX: Final = "-search"


@dataclass(frozen=True, eq=False)
class SearchResult:
    """A finished search.

    Seconds are wall time since the search was started or resumed: `search_seconds` until its last
    trial ended, `seconds` until the end. `num_before` trials had ended before.
    """

    plan: Plan
    run: RunFolder
    task: Task
    records: Records
    trials: tuple[SearchTrial, ...]
    winner: Winner
    num_before: int
    search_seconds: float
    seconds: float

    @property
    def spec(self) -> RunSpec:
        """That of the plan: its space has only fields with an effect."""
        return self.plan.spec

    @property
    def ranked(self) -> list[SearchTrial]:
        """Trials with a score, the best first."""
        upwards = higher_is_better(self.spec.search.objective, self.task.monitor)
        return ranked(self.trials, higher_is_better=upwards)


def check_search(spec: RunSpec) -> None:
    """Raise SpecError, before anything is read, if the spec cannot be searched."""
    check_space(spec)
    parse_duration(spec.search.time_budget, "search.time_budget")
    if spec.seeds > 1 or spec.halvings:
        raise SpecError(
            "a search trains every trial with one seed on all images",
            expected="seeds=1 and halvings=0; folds=… cross-validates",
            received=f"seeds={spec.seeds}, halvings={spec.halvings}",
            fix="leave these fields out; search.refits repeats the best trial with other seeds",
        )


def run_search(
    spec: RunSpec,
    run: RunFolder | None = None,
    *,
    num_workers: int = 1,
    reporter: Reporter | None = None,
) -> SearchResult:
    """Search, select the best trial, compare and export it, into a search's folder.

    Args:
        run: from `start_run`, new or to be resumed; by default a new one under saved_models/.
        num_workers: processes that train trials in parallel; 1 trains in this one.
        reporter: shows decisions and progress; by default on the terminal.

    Raises:
        SpecError: the space or another field cannot be searched.
        DataError, WeightsError: the input cannot be used.
        RunError: every trial failed, or the folder cannot be written.
        Exception: an error of a trial that ends the search.
    """
    started = time.perf_counter()
    reporter = reporter or TerminalReporter()
    run = run or start_run(spec, suffix=SUFFIX)
    with contextlib.ExitStack() as held:
        held.enter_context(vacated_on_refusal(run))
        check_one_host(spec.devices, "a search")
        check_search(spec)
        runner, plan = held.enter_context(open_trial_runner(spec, run, reporter=reporter))
        monitor = runner.session.task.monitor
        for sentence in describe_plan(plan, runner.session.spec, monitor):
            reporter.info(sentence)
        trial_log = TrialLog(run)
        num_before = len(trial_log.ended())
        with live_progress_table(trial_log, plan, monitor, reporter, num_workers=num_workers):
            if num_workers > 1:
                run_workers(run, num_workers, reporter=reporter)
            else:
                run_trials(runner, plan, trial_log)
        trials = trial_log.ended()
        _check_some_scored(trials)
        search_seconds = time.perf_counter() - started
        winner = select_best(trials, runner, plan, run, reporter=reporter)
    shutil.rmtree(run.checkpoint_folder)
    seconds = time.perf_counter() - started
    task, records = runner.session.task, runner.session.data.records
    return SearchResult(
        plan, run, task, records, tuple(trials), winner, num_before, search_seconds, seconds
    )


def _check_some_scored(trials: Sequence[SearchTrial]) -> None:
    if not any(trial.is_scored for trial in trials):
        causes = [trial.cause for trial in trials if trial.cause]
        all_of_them = f"all {len(trials)} trials" if len(trials) > 1 else "the only trial"
        raise RunError(
            f"{all_of_them} of the search failed",
            expected="at least one trial with a finite score",
            # The other lines of the message are its own expectation and fix.
            received=causes[0].splitlines()[0] if causes else "no trial",
            fix="correct the cause of the first failure, and search again",
        )
