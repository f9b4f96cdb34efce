"""One run: a spec becomes a trained, evaluated and exported classifier in a run folder.

open_session → build_classifier → fit_phases → evaluate → export
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from keras_transfer.config import check_single_training
from keras_transfer.devices.hosts import given_host, num_hosts_of, wait_for_all
from keras_transfer.devices.strategy import on_one_device, undistributed
from keras_transfer.errors import SpecError
from keras_transfer.evaluation.results import Evaluation
from keras_transfer.experiments.privacy import privacy_limits, report_privacy
from keras_transfer.experiments.run_report import write_history
from keras_transfer.experiments.run_results import as_trained, describe_metrics, write_results
from keras_transfer.experiments.session import Data, Session, open_session
from keras_transfer.experiments.sparsity import measure_sparsity
from keras_transfer.experiments.summary import (
    Result,
    describe_cache,
    describe_saving,
    describe_teachers,
)
from keras_transfer.export.card import make_card
from keras_transfer.export.saved_model.proof import Proof
from keras_transfer.features.phase_inputs import PhaseInputs
from keras_transfer.models.classifier import Classifier
from keras_transfer.reporting.reporter import Reporter, TerminalReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run, vacated_on_refusal
from keras_transfer.tasks.task import Task
from keras_transfer.training.fitting import Outcome, fit_phases
from keras_transfer.training.refitting import Refit, initial_weights, refit


def run_transfer(
    spec: RunSpec,
    run: RunFolder | None = None,
    *,
    reporter: Reporter | None = None,
    profile: bool = False,
) -> Result:
    """Train, evaluate and export, into a run folder.

    Args:
        run: from `start_run`, new or to be resumed; by default a new one under saved_models/.
        reporter: shows decisions and progress; by default on the terminal.
        profile: whether to trace some steps of every phase for TensorBoard, into profile/.

    Raises:
        DataError, SpecError, WeightsError: the input cannot be used.
        RunError: the run cannot be written or resumed, or training diverged.
        ExportError: the exported model does not agree with the trained one.
    """
    reporter = reporter or TerminalReporter()
    run = run or start_run(spec)
    with vacated_on_refusal(run):
        _check_single(spec)
        return _run(spec, run, reporter, profile=profile)


def _run(spec: RunSpec, run: RunFolder, reporter: Reporter, *, profile: bool) -> Result:
    started = time.perf_counter()
    reporter.info(f"Run folder: {run.path}")
    with open_session(spec, reporter=reporter, run=run) as session:
        classifier = session.build_classifier()
        data, phase_inputs = session.data, session.phase_inputs()
        writes = session.devices.host == 0
        if writes:
            session.write_splits()
        initial = initial_weights(classifier, phase_inputs)
        outcomes = fit_phases(classifier, phase_inputs, reporter=reporter, run=run, profile=profile)
        task = _fitted(session.task, classifier, phase_inputs)
        refitted = None
        if phase_inputs.refits:
            refitted = refit(
                classifier, phase_inputs, outcomes, initial=initial, reporter=reporter, run=run
            )
        privacy = report_privacy(classifier, phase_inputs, outcomes)
        outputs = phase_inputs.predict(classifier, data.splits.test)
        test = evaluate_test(task, data, outputs, seed=spec.seed)
        proof = sparsity = None
        if writes:
            # Only this host builds the networks that are exported.
            with on_one_device():
                finished = replace(classifier, task=task)
                proof = _write(session, finished, outcomes, test, outputs, refitted, privacy)
            sparsity = measure_sparsity(classifier.model, run.model_file)
            cache_use = describe_cache(
                data.num_decoded, phase_inputs.extraction_stats, outcomes, data.splits
            )
            if phase_inputs.teacher_stats:
                cache_use["teacher"] = describe_teachers(phase_inputs.teacher_stats)
            run.write_json("cache.json", cache_use)
            reporter.info(describe_saving(cache_use))
            parts = outcomes, refitted, test, proof, sparsity, privacy
            run.write_json("metrics.json", describe_metrics(*parts))
    wait_for_all()
    if writes:
        shutil.rmtree(run.checkpoint_folder)
    seconds = time.perf_counter() - started
    return Result(run, classifier, outcomes, refitted, test, proof, sparsity, privacy, seconds)


def _check_single(spec: RunSpec) -> None:
    check_single_training(
        spec,
        "this spec is a study with several trainings, not a single run",
        fix="call keras_transfer.experiments.study.run.run_study(spec), or use the verb `train`, "
        "which does",
    )
    if (num_hosts := num_hosts_of(spec.devices)) > given_host()[1]:
        raise SpecError(
            "a run on several hosts needs one process per host",
            expected="devices.hosts left out",
            received=f"devices.hosts={num_hosts}",
            fix="leave it out, or start the run with `python -m pipelines.train`",
        )


def evaluate_test(task: Task, data: Data, outputs: np.ndarray, *, seed: int) -> Evaluation:
    """All figures of the test split, with intervals."""
    values = data.examples.targets.values[data.splits.test]
    return task.evaluate(values, outputs, seed=seed)


def _fitted(task: Task, classifier: Classifier, phase_inputs: PhaseInputs) -> Task:
    """The task after training: scaled on the training split and fitted on validation."""
    values, splits = phase_inputs.source.examples.targets.values, phase_inputs.splits
    task = task.scaled(values[splits.train])
    if not task.needs_fitting:
        return task
    return task.fitted(values[splits.val], phase_inputs.predict(classifier, splits.val))


def _write(
    session: Session,
    classifier: Classifier,
    outcomes: Sequence[Outcome],
    test: Evaluation,
    outputs: np.ndarray,
    refitted: Refit | None,
    privacy: dict[str, Any] | None,
) -> Proof:
    """Write all files of a run except metrics.json, which marks the run as complete."""
    assert session.run
    write_history(session.run, outcomes, classifier.task)
    model, data, task = undistributed(classifier.model), session.data, classifier.task
    spec = as_trained(session.spec, [outcome.name for outcome in outcomes])
    counts = data.counts | ({"refit": refitted.num_images} if refitted else {})
    limits = privacy_limits(privacy)
    return write_results(
        session,
        data,
        model,
        task,
        test=test,
        card=make_card(spec, model, task, test, counts, limits=limits),
        outputs=outputs,
        save=classifier.save,
    )
