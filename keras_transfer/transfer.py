"""The corridor: one spec walks through the rooms once, left to right.

    spec → read_records → build_classifier → load_data → fit_phases → judge → export_proven

`run_transfer` is these calls in a row. A notebook may make them one by one.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_transfer.data.audit import audit
from keras_transfer.data.pipeline import Examples
from keras_transfer.data.records import Records
from keras_transfer.data.sources import read_records
from keras_transfer.data.splits import Splits, make_splits, manifest, read_manifest
from keras_transfer.delivery.parity import Parity
from keras_transfer.delivery.proof import export_proven
from keras_transfer.delivery.runs import RunFolder
from keras_transfer.delivery.starting import start_run, vacated_on_refusal
from keras_transfer.devices import set_up
from keras_transfer.evaluation.metrics import Evaluation, evaluate
from keras_transfer.fitting import Outcome, SplitData, check_stages, fit_phases
from keras_transfer.models.classifier import Classifier, build_classifier
from keras_transfer.narration import describe_data, describe_model
from keras_transfer.report import write_history, write_test, write_views
from keras_transfer.specs import RunSpec
from keras_transfer.terminal import Narrator, Terminal


@dataclass(frozen=True)
class Data:
    """A source after the audit: records, their splits, and pixels at the network's size."""

    records: Records
    splits: Splits
    examples: Examples


@dataclass(frozen=True)
class Result:
    """What a run ended with."""

    run: RunFolder
    classifier: Classifier
    outcomes: list[Outcome]
    test: Evaluation
    parity: Parity
    seconds: float


def run_transfer(
    spec: RunSpec, run: RunFolder | None = None, *, narrator: Narrator | None = None
) -> Result:
    """The main job: train, judge, export and prove, into a run folder.

    Args:
        run: from `start_run`, new or to be resumed; by default a new one under saved_models/.
        narrator: who is told of decisions and progress; by default the terminal.

    Raises:
        DataError, SpecError, WeightsError: the input cannot be used as it is.
        RunError: the run cannot be written or resumed, or training diverged.
        ExportError: the artefact does not agree with the model.
    """
    narrator = narrator or Terminal()
    run = run or start_run(spec)
    with vacated_on_refusal(run):
        return _run(spec, run, narrator)


def _run(spec: RunSpec, run: RunFolder, narrator: Narrator) -> Result:
    started = time.perf_counter()
    set_up(spec.devices, seed=spec.seed)
    narrator.say(f"Run folder: {run.path}")
    records = read_records(spec.data)
    # Before any picture is decoded: missing weights and wrong stages are told within seconds.
    classifier = build_classifier(
        spec.model,
        image_size=spec.data.image_size,
        class_names=records.class_names,
        seed=spec.seed,
    )
    check_stages(classifier, spec)
    narrator.say(describe_model(spec, classifier))
    run.checkpoint_folder.mkdir(exist_ok=True)
    pixels_file = run.checkpoint_folder / "pixels"
    data = load_data(spec, records, pixels_file, narrator=narrator, run=run)
    split_data = SplitData(spec, data.examples, data.splits)
    outcomes = fit_phases(classifier, split_data, narrator=narrator, run=run)
    probabilities = split_data.predict(classifier, data.splits.test)
    test = judge(data, probabilities, seed=spec.seed)
    parity = _deliver(run, spec, classifier, data, outcomes, test, probabilities)
    run.write_json("metrics.json", _metrics(outcomes, test, parity))
    shutil.rmtree(run.checkpoint_folder)
    return Result(run, classifier, outcomes, test, parity, time.perf_counter() - started)


def load_data(
    spec: RunSpec,
    records: Records,
    pixels_file: Path,
    *,
    narrator: Narrator,
    run: RunFolder | None = None,
) -> Data:
    """Decode every picture once, leave out what cannot be read, and split.

    Args:
        records: from `read_records`.
        pixels_file: where the decoded pictures are kept while training, uint8 [N, S, S, 3].
        run: whose splits.json and class_names.json are written, or honoured where they exist.

    Raises:
        DataError: the pictures or their splits cannot be used.
    """
    with narrator.counting("reading pictures") as count:
        records, pixels = audit(records, spec.data, pixels_file=pixels_file, on_progress=count)
    if run and (run.path / "splits.json").is_file():
        splits = read_manifest(run.read_json("splits.json"), records)
    else:
        splits = make_splits(records, spec.data, seed=spec.seed)
    if run:
        run.write_json("splits.json", manifest(splits, records))
        run.write_class_names(records.class_names)
    for sentence in describe_data(spec, records, splits):
        narrator.say(sentence)
    examples = Examples(
        pixels=pixels,
        labels=np.asarray(records.labels(), np.int64),
        example_ids=np.asarray([record.example_id for record in records.items], np.int64),
        num_classes=len(records.class_names),
    )
    return Data(records, splits, examples)


def judge(data: Data, probabilities: np.ndarray, *, seed: int) -> Evaluation:
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
) -> Parity:
    """Everything that a run leaves but metrics.json, which says that it is complete."""
    rows = data.splits.test
    write_history(run, outcomes)
    write_views(run, spec, data.records, data.splits, data.examples)
    write_test(run, data.records, rows, data.examples, test=test, probabilities=probabilities)
    with run.replacing("model.keras") as path:
        classifier.save(path)
    return export_proven(
        classifier.model,
        run.export_folder,
        spec=spec,
        class_names=data.records.class_names,
        files=[data.records.file(row) for row in rows],
        probabilities=probabilities,
    )


def _metrics(outcomes: Sequence[Outcome], test: Evaluation, parity: Parity) -> dict[str, Any]:
    phases = [asdict(outcome) for outcome in outcomes]
    for phase in phases:
        # history.csv has them.
        del phase["history"]
    return {
        "phases": phases,
        "test": test.to_dict(),
        "export": {
            "num_files": parity.num_files,
            "label_agreement": parity.label_agreement,
            "max_abs_difference": parity.max_abs_difference,
        },
    }
