"""The corridor: one spec walks through the rooms once, left to right.

    spec → read_records → build_classifier → load_data → fit_phases → judge → deliver

`run_transfer` is these calls in a row. A notebook may make them one by one.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from keras_transfer.data.audit import audit, pixels_key
from keras_transfer.data.datasets import Examples
from keras_transfer.data.records import Records
from keras_transfer.data.sources import read_records
from keras_transfer.data.splits import NAMES, Splits, make_splits, manifest, read_manifest
from keras_transfer.devices import set_up
from keras_transfer.devices.hosts import given_host, num_hosts_of, wait_for_all
from keras_transfer.devices.strategy import on_one_device, undistributed
from keras_transfer.errors import SpecError
from keras_transfer.evaluation.metrics import Evaluation, evaluate
from keras_transfer.experiments.descriptions import (
    describe_cache,
    describe_data,
    describe_model,
    describe_saving,
)
from keras_transfer.experiments.run_report import write_history, write_test, write_views
from keras_transfer.experiments.session import resolve_cache_mode
from keras_transfer.export.bundle.deployment import deliver
from keras_transfer.export.card import make_card
from keras_transfer.export.saved_model.proof import Proof
from keras_transfer.features.phase_inputs import PhaseInputs
from keras_transfer.features.source import Source
from keras_transfer.models.classifier import Classifier
from keras_transfer.reporting.reporter import Reporter, TerminalReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.cache import Cache, open_cache
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run, vacated_on_refusal
from keras_transfer.training.fitting import Outcome, fit_phases, prepare_classifier


@dataclass(frozen=True)
class Data:
    """A source after the audit: records, splits, pixels at the network's size and their keys."""

    records: Records
    splits: Splits
    source: Source
    num_decoded: int

    @property
    def examples(self) -> Examples:
        """Pixels, labels and numbers of all images."""
        return self.source.examples


@dataclass(frozen=True)
class Result:
    """What a run ended with; `proof` is None on all hosts but the first, which alone writes."""

    run: RunFolder
    classifier: Classifier
    outcomes: list[Outcome]
    test: Evaluation
    proof: Proof | None
    seconds: float


def run_transfer(
    spec: RunSpec,
    run: RunFolder | None = None,
    *,
    reporter: Reporter | None = None,
    profile: bool = False,
) -> Result:
    """The main job: train, judge, export and prove, into a run folder.

    Args:
        run: from `start_run`, new or to be resumed; by default a new one under saved_models/.
        reporter: who is told of decisions and progress; by default the terminal.
        profile: whether to trace some steps of every phase for TensorBoard, into profile/.

    Raises:
        DataError, SpecError, WeightsError: the input cannot be used as it is.
        RunError: the run cannot be written or resumed, or training diverged.
        ExportError: the artefact does not agree with the model.
    """
    reporter = reporter or TerminalReporter()
    run = run or start_run(spec)
    with vacated_on_refusal(run):
        return _run(spec, run, reporter, profile=profile)


def _run(spec: RunSpec, run: RunFolder, reporter: Reporter, *, profile: bool) -> Result:
    _check_single(spec)
    started = time.perf_counter()
    devices = set_up(spec.devices, seed=spec.seed)
    devices.check_batch_size(spec.training.batch_size, spec.devices.batch_size)
    reporter.info(f"Run folder: {run.path}")
    reporter.info(devices.describe(spec.training.batch_size))
    records = read_records(spec.data)
    # Before any image is decoded: missing weights and wrong stages are told within seconds.
    classifier = prepare_classifier(spec, records.class_names)
    reporter.info(describe_model(spec, classifier))
    run.checkpoint_folder.mkdir(exist_ok=True)
    settled = resolve_cache_mode(spec, len(records.items), reporter=reporter)
    with open_cache(settled, reporter=reporter, scratch=run.checkpoint_folder) as cache:
        writer = run if devices.host == 0 else None
        data = load_data(settled, records, cache=cache, reporter=reporter, run=writer)
        phase_inputs = PhaseInputs(
            settled, data.source, data.splits, cache=cache, reporter=reporter
        )
        outcomes = fit_phases(classifier, phase_inputs, reporter=reporter, run=run, profile=profile)
        probabilities = phase_inputs.predict(classifier, data.splits.test)
        test = evaluate_test(data, probabilities, seed=spec.seed)
        proof = None
        if writer:
            # Other hosts take no part in making the networks that are exported.
            with on_one_device():
                proof = _deliver(run, spec, classifier, data, outcomes, test, probabilities)
            cache_use = describe_cache(
                data.num_decoded, phase_inputs.extraction_stats, outcomes, data.splits
            )
            run.write_json("cache.json", cache_use)
            reporter.info(describe_saving(cache_use))
            run.write_json("metrics.json", _metrics(outcomes, test, proof))
    wait_for_all()
    if writer:
        shutil.rmtree(run.checkpoint_folder)
    return Result(run, classifier, outcomes, test, proof, time.perf_counter() - started)


def _check_single(spec: RunSpec) -> None:
    if spec.num_trials > 1:
        raise SpecError(
            "a study of several trainings is not one run",
            expected="folds=1, seeds=1 and halvings=0",
            received=f"folds={spec.folds}, seeds={spec.seeds}, halvings={spec.halvings}",
            fix="call keras_transfer.experiments.study.run.run_study(spec), or the verb `train`, "
            "which does",
        )
    if (num_hosts := num_hosts_of(spec.devices)) > given_host()[1]:
        raise SpecError(
            "a run on several hosts is as many processes, and this is one",
            expected="devices.hosts left out",
            received=f"devices.hosts={num_hosts}",
            fix="leave it out, or start the run with `python -m pipelines.train`",
        )


def load_data(
    spec: RunSpec,
    records: Records,
    *,
    cache: Cache,
    reporter: Reporter,
    run: RunFolder | None = None,
) -> Data:
    """Read every image once, leave out what cannot be read, and split.

    Args:
        records: from `read_records`.
        store: where the pixels are kept, from `open_cache`.
        run: whose splits.json and class_names.json are written, or honoured where they exist.

    Raises:
        DataError: the images or their splits cannot be used.
        RunError: the pixels cannot be stored.
    """
    records, pixels, num_decoded = audit(records, spec.data, cache=cache, reporter=reporter)
    if run and (run.path / "splits.json").is_file():
        splits = read_manifest(run.read_json("splits.json"), records)
    else:
        splits = make_splits(records, spec.data, seed=spec.seed)
    if run:
        run.write_json("splits.json", manifest(splits, records))
        run.write_class_names(records.class_names)
    for sentence in describe_data(spec, records, splits):
        reporter.info(sentence)
    examples = Examples(
        pixels=pixels,
        labels=np.asarray(records.labels(), np.int64),
        example_ids=np.asarray([record.example_id for record in records.items], np.int64),
        num_classes=len(records.class_names),
    )
    digests = [record.digest for record in records.items]
    source = Source(examples, digests, spec.views, pixels_key(spec.data))
    return Data(records, splits, source, num_decoded)


def evaluate_test(data: Data, probabilities: np.ndarray, *, seed: int) -> Evaluation:
    """All figures of the test split, with intervals."""
    labels = data.examples.labels[data.splits.test]
    return evaluate(labels, probabilities, data.records.class_names, seed=seed)


def _deliver(
    run: RunFolder,
    spec: RunSpec,
    classifier: Classifier,
    data: Data,
    outcomes: Sequence[Outcome],
    test: Evaluation,
    probabilities: np.ndarray,
) -> Proof:
    """Everything that a run leaves but metrics.json, which says that it is complete."""
    rows = data.splits.test
    write_history(run, outcomes)
    write_views(run, spec, data.records, data.splits, data.examples)
    write_test(run, data.records, rows, data.examples, test=test, probabilities=probabilities)
    model = undistributed(classifier.model)
    with run.replacing("model.keras") as path:
        classifier.save(path)
    counts = {name: len(getattr(data.splits, name)) for name in NAMES}
    return deliver(
        model,
        run.export_folder / "1",
        spec=spec,
        card=make_card(spec, model, data.records.class_names, test, counts),
        files=[data.records.file(row) for row in rows],
        probabilities=probabilities,
    )


def _metrics(outcomes: Sequence[Outcome], test: Evaluation, proof: Proof) -> dict[str, Any]:
    phases = [asdict(outcome) for outcome in outcomes]
    for phase in phases:
        # history.csv has them.
        del phase["history"]
    return {
        "phases": phases,
        "test": test.to_dict(),
        "export": {
            # How far off probabilities are depends on the way that was fastest: see proof.json.
            "num_files": proof.parity.num_files,
            "label_agreement": proof.parity.label_agreement,
        },
    }
