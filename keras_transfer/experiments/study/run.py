"""Studies: one spec trained many times, at about the cost of a single training.

    folds=5       every image is held out once: cross-validation
    seeds=5       the same run with other seeds
    halvings=4    with all, half, a quarter … of the training images

All trials share the decoded images and the cache: frozen layers run once per view for the whole
study.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_transfer.config import override
from keras_transfer.data.records import Records
from keras_transfer.data.splits import Splits, make_folds, make_splits, with_train_size
from keras_transfer.devices.hosts import check_one_host
from keras_transfer.evaluation.results import Headline
from keras_transfer.experiments.session import Session, open_session
from keras_transfer.experiments.study.report import write_study
from keras_transfer.experiments.study.study import Study, StudyTrial
from keras_transfer.experiments.summary import plural_of
from keras_transfer.experiments.trial_runner import (
    TrialResult,
    TrialRunner,
    pool_of,
    single_run,
)
from keras_transfer.features.phase_inputs import Pool
from keras_transfer.reporting.reporter import PrefixedReporter, Reporter, TerminalReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run, vacated_on_refusal
from keras_transfer.training.progress import Checkpoint, State


def run_study(
    spec: RunSpec, run: RunFolder | None = None, *, reporter: Reporter | None = None
) -> Study:
    """Run all trials of `folds`, `seeds` and `halvings`, and write a study folder.

    Args:
        run: from `start_run`, new or to be resumed; by default a new one under saved_models/.
            Trials that ended before an interruption are not run again.
        reporter: shows decisions and progress; by default on the terminal.

    Raises:
        DataError, SpecError, WeightsError: the input cannot be used.
        RunError: the folder cannot be written or resumed, or training diverged.
    """
    reporter = reporter or TerminalReporter()
    run = run or start_run(spec)
    with vacated_on_refusal(run):
        check_one_host(spec.devices, "a study")
        reporter.info(f"Study folder: {run.path}")
        with open_session(spec, reporter=reporter, run=run) as session:
            session.build_classifier()
            trials = _plan_trials(session)
            # Only now, so that a study with too many folds fails without writing any file.
            session.write_splits()
            done = _run_trials(trials, session, run)
            study = Study(spec, run, session.task, session.data.records, tuple(done))
            write_study(study)
    shutil.rmtree(run.checkpoint_folder)
    return study


@dataclass(frozen=True, eq=False)
class _Trial:
    """One planned training, evaluated on the rows `splits.test`; `fold` counts from 1."""

    name: str
    spec: RunSpec
    splits: Splits
    fold: int | None = None


def _plan_trials(session: Session) -> list[_Trial]:
    """All trials in the order in which they run.

    Cross-validation leaves out the rows of the session's test split.

    Raises:
        DataError: there are too few images for the number of folds or for the splits.
    """
    spec, records = session.spec, session.data.records
    seeds = [spec.seed + number for number in range(spec.seeds)]
    if spec.folds > 1:
        test = session.data.splits.test
        return [
            _trial(spec, splits, fold=fold)
            for seed in seeds
            for fold, splits in enumerate(
                make_folds(records, spec.data, test, num_folds=spec.folds, seed=seed), 1
            )
        ]
    drawn = [make_splits(records, spec.data, seed=seed) for seed in seeds]
    if not spec.halvings:
        return [_trial(spec, splits) for splits in drawn]
    largest = min(len(splits.train) for splits in drawn)
    sizes = _halve(largest, spec, records, session.reporter)
    return [
        _trial(spec, with_train_size(splits, records, size)) for splits in drawn for size in sizes
    ]


def _trial(spec: RunSpec, splits: Splits, *, fold: int | None = None) -> _Trial:
    parts = []
    if fold:
        parts.append(f"fold {fold} of {spec.folds}")
    if spec.halvings:
        parts.append(f"{len(splits.train):,} images")
    if spec.seeds > 1 or not parts:
        parts.append(f"seed {splits.seed}")
    own = override(single_run(spec), {"seed": splits.seed})
    return _Trial(", ".join(parts), own, splits, fold)


def _halve(size: int, spec: RunSpec, records: Records, reporter: Reporter) -> list[int]:
    """Numbers of training images, the largest first, with at least one image of each stratum."""
    wanted = [size // 2**number for number in range(spec.halvings + 1)]
    targets = records.targets
    sizes = [size for size in wanted if size >= len(targets.strata_names)]
    if len(sizes) < len(wanted):
        reporter.info(
            f"The learning curve ends at {sizes[-1]:,} training images, after "
            f"{len(sizes) - 1} of {spec.halvings} halvings: half of them would be too few for "
            f"{len(targets.strata_names)} {plural_of(targets.kind)}."
        )
    return sizes


def _pools(trials: Sequence[_Trial]) -> list[Pool]:
    """For each trial the rows of all trials with the same trunk."""
    siblings: dict[int | None, list[Splits]] = {}
    for trial in trials:
        siblings.setdefault(_seed_of_trunk(trial), []).append(trial.splits)
    # They differ in seed, fold and size, none of which changes whether there is a refit.
    spec = trials[0].spec
    union = {seed: pool_of(spec, splits) for seed, splits in siblings.items()}
    return [union[_seed_of_trunk(trial)] for trial in trials]


def _seed_of_trunk(trial: _Trial) -> int | None:
    """Random weights depend on the seed, all others do not."""
    return trial.spec.seed if trial.spec.model.weights == "none" else None


def _run_trials(trials: Sequence[_Trial], session: Session, run: RunFolder) -> list[StudyTrial]:
    reporter = session.reporter
    reporter.info(f"{len(trials)} trials, from {trials[0].name!r} to {trials[-1].name!r}.")
    runner = TrialRunner(session, [trial.splits for trial in trials])
    done = []
    for number, (trial, pool) in enumerate(zip(trials, _pools(trials), strict=True)):
        checkpoint = Checkpoint(run, f"trial-{number}", reporter.info)
        state = checkpoint.load()
        if state is None:
            result = runner.train(
                trial.spec,
                splits=[trial.splits],
                pool=pool,
                # What all trials share is reported once.
                reporter=PrefixedReporter(reporter, trial.name) if number else reporter,
                predict=True,
            )
            finished = _study_trial(trial, result, session)
            arrays = {"outputs": finished.outputs}
            checkpoint.save(State({"result": finished.to_dict()}, {"held_out": arrays}))
        else:
            outputs = state.arrays["held_out"]["outputs"]
            rows = trial.splits.test
            finished = StudyTrial(**state.numbers["result"], rows=rows, outputs=outputs)
        show = session.task.monitor.format
        low, high = map(show, _headline(trial, finished.outputs, session).interval)
        reporter.info(
            f"Trial {number + 1} of {len(trials)}, {trial.name}: {show(finished.score)} "
            f"({low} to {high}) of {finished.num_held_out:,} images, "
            f"{finished.seconds:.0f} s."
        )
        done.append(finished)
    return done


def _headline(trial: _Trial, outputs: np.ndarray, session: Session) -> Headline:
    values = session.data.records.targets.values
    task = session.task.scaled(values[trial.splits.train])
    return task.headline(values[trial.splits.test], outputs)


def _study_trial(trial: _Trial, result: TrialResult, session: Session) -> StudyTrial:
    assert result.outputs is not None
    kept = ("name", "epochs", "seconds", "val_score", "kept")
    phases = [dataclasses.asdict(outcome) for outcome in result.outcomes]
    return StudyTrial(
        name=trial.name,
        seed=trial.spec.seed,
        fold=trial.fold,
        train_size=len(trial.splits.train),
        num_held_out=len(trial.splits.test),
        score=_headline(trial, result.outputs, session).value,
        seconds=result.seconds,
        **result.views,
        phases=[{name: phase[name] for name in kept} for phase in phases],
        rows=trial.splits.test,
        outputs=result.outputs,
    )
