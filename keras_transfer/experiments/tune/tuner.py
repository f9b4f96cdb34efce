"""KerasTuner around the trial runner: its oracles propose values, and each trial is one training.

KerasTuner continues after any error. Here a trial fails if its loss is not finite or memory runs
out, and every other error ends the search.
"""

import contextlib
import io
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import keras_tuner

from keras_transfer.devices import is_out_of_memory
from keras_transfer.devices.memory import resident_mb
from keras_transfer.errors import DivergedError, RunError
from keras_transfer.experiments.trial_runner import TrialResult, TrialRunner
from keras_transfer.experiments.tune.effects import fields_with_effect
from keras_transfer.experiments.tune.plan import Plan
from keras_transfer.experiments.tune.record import (
    COMPLETED,
    FAILED,
    SearchTrial,
    StartedTrial,
    TrialLog,
    higher_is_better,
)
from keras_transfer.experiments.tune.space import declare, values_of
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.tasks.task import Monitor

_MOST_ATTEMPTS: Final = 3
"""Attempts of a trial: after that many killed processes it has failed, perhaps for memory."""

_NO_LIMIT: Final = 10**9
"""Failed trials in a row that KerasTuner tolerates: failures are counted at the end."""

MakeReporter = Callable[[StartedTrial], Reporter]


def make_oracle(spec: RunSpec, monitor: Monitor, *, num_epochs: int) -> keras_tuner.Oracle:
    """The oracle of `spec.search.tuner`; `num_epochs` are those of a whole training."""
    search = spec.search
    parameters = keras_tuner.HyperParameters()
    declare(parameters, spec)
    direction = "max" if higher_is_better(search.objective, monitor) else "min"
    common: dict[str, Any] = {
        "objective": keras_tuner.Objective(search.objective, direction),
        "hyperparameters": parameters,
        "allow_new_entries": False,
        # KerasTuner treats 0 as no seed.
        "seed": search.seed + 1,
        "max_consecutive_failed_trials": _NO_LIMIT,
    }
    oracles = keras_tuner.oracles
    if search.tuner == "hyperband":
        oracle = oracles.HyperbandOracle(
            max_epochs=num_epochs,
            factor=search.hyperband_factor,
            hyperband_iterations=search.hyperband_iterations,
            **common,
        )
    else:
        kinds = {
            "random": oracles.RandomSearchOracle,
            "bayesian": oracles.BayesianOptimizationOracle,
            "grid": oracles.GridSearchOracle,
        }
        oracle = kinds[search.tuner](max_trials=search.trials, **common)
    oracle.verbose = 0
    return oracle


def retry_unfinished(oracle: keras_tuner.Oracle) -> None:
    """Queue the unfinished trials of an interrupted search, for any worker.

    KerasTuner reserves them for workers of the same names, which may not exist any more.
    """
    oracle._retry_queue.extend(trial.trial_id for trial in oracle.ongoing_trials.values())
    oracle.ongoing_trials.clear()


class SearchTuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Runs the oracle's trials with a trial runner and logs them."""

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        runner: TrialRunner,
        plan: Plan,
        trial_log: TrialLog,
        *,
        make_reporter: MakeReporter,
    ):
        """`make_reporter` returns the reporter of a started trial."""
        self._runner, self._plan = runner, plan
        self._log, self._make_reporter = trial_log, make_reporter
        self._effects: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__(oracle, directory=str(trial_log.folder.path), project_name="oracle")

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ARG002
        """Train with the trial's values and return its figures, by their names as objectives."""
        try:
            ended = self._run(trial)
        except Exception as error:
            raise keras_tuner.errors.FatalError(str(error)) from error
        return _figures(ended)

    def _run(self, trial: Any) -> SearchTrial:
        proposed = trial.hyperparameters.values
        values = values_of(self._plan.spec, proposed)
        spec = self._runner.vary(values)
        known = self._log.result(trial.trial_id)
        if known and known.values == values:
            return known
        whole = spec.num_epochs
        num_epochs = proposed.get("tuner/epochs", whole)
        same = self._trained_before(spec, num_epochs)
        begun = self._log.begin(trial.trial_id, spec, values, worker=self.tuner_id)
        if same:
            ended = replace(same, name=begun.name, values=values, seconds=0.0, same_as=same.name)
            ended = replace(ended, started=begun.started, worker=begun.worker)
            self._log.end(ended)
            return ended
        try:
            _check_attempts(begun)
            result = self._runner.train(
                spec, num_epochs=num_epochs, reporter=self._make_reporter(begun)
            )
        except BaseException as error:
            if not _fails_its_trial(error):
                # It was stopped, not killed, so the attempt does not count.
                self._log.drop(begun.name)
                raise
            ended = _ended(begun, num_epochs / whole, error=error)
        else:
            objective = self._plan.spec.search.objective
            ended = _ended(begun, num_epochs / whole, result=result, objective=objective)
        self._log.end(ended)
        return ended

    def _trained_before(self, spec: RunSpec, num_epochs: int) -> SearchTrial | None:
        """A trial that trained the same to its end, with other values that have no effect."""
        if num_epochs < spec.num_epochs:
            return None
        own = fields_with_effect(spec, self._plan.trained)
        for trial in self._log.ended():
            if trial.is_scored and trial.share == 1 and not trial.same_as:
                if trial.name not in self._effects:
                    other = self._runner.vary(trial.values)
                    self._effects[trial.name] = fields_with_effect(other, self._plan.trained)
                if self._effects[trial.name] == own:
                    return trial
        return None


def _fails_its_trial(error: BaseException) -> bool:
    """Whether an error fails only its trial, so that the search continues."""
    return isinstance(error, DivergedError | _KilledError) or is_out_of_memory(error)


def _figures(ended: SearchTrial) -> dict[str, float]:
    """The figures of a trial for KerasTuner, whether it ended now or before an interruption."""
    if ended.val_score is None or ended.val_loss is None:
        raise keras_tuner.errors.FailedTrialError(ended.cause)
    return {"val_score": ended.val_score, "val_loss": ended.val_loss}


class _KilledError(RunError):
    """The process was killed in each of a trial's attempts."""


def _check_attempts(begun: StartedTrial) -> None:
    if begun.attempt > _MOST_ATTEMPTS:
        raise _KilledError(
            f"the process was killed in trial {begun.name} {_MOST_ATTEMPTS} times",
            expected="a trial that completes",
            received="no result",
            fix="if memory ran out, lower training.batch_size or the largest values of the space",
        )


def _ended(
    begun: StartedTrial,
    share: float,
    *,
    result: TrialResult | None = None,
    objective: str = "",
    error: BaseException | None = None,
) -> SearchTrial:
    """A trial's record, from its result or from the error that failed it."""
    return SearchTrial(
        name=begun.name,
        values=begun.values,
        status=COMPLETED if result else FAILED,
        score=result.figures[objective] if result else None,
        val_score=result.val_score if result else None,
        val_loss=result.val_loss if result else None,
        epochs=result.epochs if result else 0,
        seconds=time.time() - begun.started,
        started=begun.started,
        worker=begun.worker,
        cause=f"{type(error).__name__}: {error}" if error else "",
        share=share,
        resident_mb=resident_mb(),
    )


def run_tuner(tuner: SearchTuner, oracle: keras_tuner.Oracle, *, seconds: float) -> None:
    """Search until the oracle has no more trials, or until the time is up.

    A worker gets its trials from the chief; the chief serves workers until all have ended.

    Args:
        seconds: time after which no trial is started; infinity for no limit.

    Raises:
        Exception: an error of a trial that ends the search.
    """

    def close() -> None:
        # The oracle then ends the search, for its own loop and for all workers.
        oracle.max_trials = max(1, len(oracle.trials))

    timer = threading.Timer(seconds, close) if math.isfinite(seconds) else None
    if timer:
        timer.daemon = True
        timer.start()
    try:
        # KerasTuner prints the traceback of every failed trial; the log has its cause.
        with contextlib.redirect_stderr(io.StringIO()):
            tuner.search()
    except keras_tuner.errors.FatalError as fatal:
        raise (fatal.__cause__ or fatal) from None
    finally:
        if timer:
            timer.cancel()
