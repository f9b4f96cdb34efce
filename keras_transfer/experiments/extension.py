"""Extension of a finished run by new images, of new classes or of its own.

The new run has the finished one as its backbone, and its head is solved on the images of both: the
old images keep their splits, and splits of the new ones are drawn. What a frozen backbone computed
of the old images is in the cache, so that nothing is learnt at the cost of what was known before.
All images are listed in a CSV file next to the folder of the new run, which is an ordinary run.
"""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from keras_transfer.config import images_at, make_spec, override
from keras_transfer.data.listed_images import find_listed
from keras_transfer.data.records import Record, Records, counted
from keras_transfer.data.sources import read_records
from keras_transfer.data.splits import NAMES, Splits, make_splits, read_manifest
from keras_transfer.errors import DataError, KerasTransferError, SpecError
from keras_transfer.evaluation.intervals import Z95
from keras_transfer.evaluation.results import Gain, Headline, paired_gain
from keras_transfer.experiments.evaluation import predict_test
from keras_transfer.experiments.run import run_transfer
from keras_transfer.inference.prediction import LoadedRun, load_run
from keras_transfer.methods.registry import check_repeatable, make_methods
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import DataSpec, PhaseSpec, RunSpec
from keras_transfer.storage.atomic import replacing
from keras_transfer.storage.cells import spreadsheet_cell
from keras_transfer.storage.checksums import sha256_of
from keras_transfer.storage.run_folder import latest, next_free
from keras_transfer.storage.run_start import DEFAULT_PARENT, start_run
from keras_transfer.tasks.single_label import SingleLabel

REPORT_FILE: Final = "extension.json"
"""Written last: it marks an extension as complete."""
_PHASE: Final = PhaseSpec(name="extended", method="exact")
_COLUMNS: Final = ("path", "label", "split", "group")
_LISTED: Final = DataSpec()
_COLUMN_FIELDS: Final = ("path_column", "label_column", "split_column", "group_column")
_SPLIT_FIELDS: Final = ("train_split", "val_split", "test_split", "train_size", "unlabelled")


@dataclass(frozen=True, eq=False)
class Extension:
    """A finished extension. Figures of `old` classes are on the test images of the first run.

    `before` and `after` are the accuracies of the first run and of the extended one, which has more
    classes to confuse; `gain` is their paired difference, and `gain_among_old` the same where the
    extended run chooses among old classes only: what it forgot. `added` is the accuracy on the test
    images of the new source, `overall` that on all test images of the extended run.
    """

    original: LoadedRun
    extended: LoadedRun
    before: Headline
    after: Headline
    gain: Gain
    gain_among_old: Gain
    added: Headline
    overall: Headline
    new_classes: tuple[str, ...]
    num_old: int
    num_added: int

    def describe(self) -> list[str]:
        """The accuracy on old, new and all test images, a sentence each, with 95 % intervals."""
        monitor = self.original.task.monitor

        def changed(gain: Gain) -> str:
            return monitor.format_gain(gain.difference, Z95 * gain.standard_error)

        def measured(headline: Headline) -> str:
            low, high = map(monitor.format, headline.interval)
            return f"{monitor.format(headline.value)} ({low} to {high})"

        forgotten = "something" if self.gain_among_old.difference < 0 else "nothing"
        sentences = [
            f"Accuracy on the {self.num_old:,} old test images: "
            f"{monitor.format(self.before.value)} before, {monitor.format(self.after.value)} now "
            f"({changed(self.gain)}).",
            f"Accuracy on the {self.num_added:,} new test images: {measured(self.added)}.",
            f"Accuracy on all {self.num_old + self.num_added:,} test images: "
            f"{measured(self.overall)}.",
        ]
        if self.new_classes:
            sentences.insert(
                1,
                "Among the old classes alone the accuracy on old test images changes by "
                f"{changed(self.gain_among_old)}, so {forgotten} was forgotten. "
                "The rest of the change is due to images that are now taken for a new class.",
            )
        return [*sentences, "Numbers in brackets and after ± are 95 % intervals."]

    def to_dict(self) -> dict[str, Any]:
        """The content of extension.json."""
        return {
            "extends": str(self.original.folder.path),
            "new_classes": list(self.new_classes),
            "num_old_test_images": self.num_old,
            "num_new_test_images": self.num_added,
            "old_accuracy_before": self.before.value,
            "old_accuracy_after": self.after.value,
            "gain": dataclasses.asdict(self.gain),
            "gain_among_old_classes": dataclasses.asdict(self.gain_among_old),
            "new_accuracy": self.added.value,
            "new_interval": list(self.added.interval),
            "accuracy": self.overall.value,
            "interval": list(self.overall.interval),
            "sentence": " ".join(self.describe()),
        }


def extend_run(
    path: str | Path,
    images: str | Path,
    fields: Mapping[str, Any],
    *,
    output: str | Path | None,
    resume: bool,
    reporter: Reporter,
) -> Extension:
    """Train a run on the images of a finished one and on new ones, and compare the two.

    Args:
        images: folder of class folders, or CSV file; classes may be new ones or the run's.
        fields: of the new run's spec, as of `make_spec`.

    Raises:
        RunError: there is no finished run, or the new one cannot be written.
        SpecError: the run has no classes, or a field is wrong.
        DataError: images of the run are missing or have changed, or the new ones cannot be used.
        WeightsError, ExportError: as of `run_transfer`.
    """
    original = load_run(path)
    check_repeatable(make_methods(original.spec))
    if original.task.name != SingleLabel.name:
        raise SpecError(
            "only runs that predict one class can be extended",
            expected=f"a run with task={SingleLabel.name}",
            received=f"task={original.task.name}",
            fix="train a new run on all images",
        )
    name = f"{original.spec.name}-extended"
    find = latest if resume else next_free
    folder = Path(output) if output else find(DEFAULT_PARENT, name)
    listing = folder.absolute().with_name(f"{folder.name}.csv")
    spec = _spec_of(original, listing, name, fields)
    known, splits = read_manifest(original.folder.read_json("splits.json"))
    old = _old_images(original, _with_splits(known, splits), reporter)
    new = _new_images(original, images, known, spec, reporter)
    _write_listing([*old, *new], listing, resume=resume)
    run = start_run(spec, output=folder, resume=resume, suffix="", last=REPORT_FILE)
    if not run.is_complete:
        try:
            run_transfer(spec, run, reporter=reporter)
        except KerasTransferError:
            if not run.path.exists():  # Refused before it had any result.
                listing.unlink()
            raise
    found = _compare(original, load_run(run.path), reporter)
    run.write_json(REPORT_FILE, found.to_dict())
    return found


def _spec_of(original: LoadedRun, listing: Path, name: str, fields: Mapping[str, Any]) -> RunSpec:
    """The spec of the new run: the finished one is its backbone, and a head is solved on it."""
    names = ("name", *_COLUMN_FIELDS, *_SPLIT_FIELDS)
    plain = {f"data.{field}": getattr(_LISTED, field) for field in names}
    spec = override(
        dataclasses.replace(original.spec, phases=(_PHASE,)),
        {
            **plain,
            "name": name,
            "data.source": "csv",
            "data.path": str(listing),
            "model.backbone": str(original.folder.path.absolute()),
            "model.last_stage": "",
            "model.weights": "file",
            "model.preprocess": "",
            "model.head": "linear",
        },
    )
    return make_spec(spec, **fields)


def _with_splits(records: Sequence[Record], splits: Splits) -> list[Record]:
    """The records in a split, with its name; others are left out."""
    split_of = {row: name for name in NAMES for row in getattr(splits, name).tolist()}
    return [dataclasses.replace(records[row], split=name) for row, name in split_of.items()]


def _old_images(original: LoadedRun, used: Sequence[Record], reporter: Reporter) -> list[Record]:
    """The images that the run has used, with absolute paths."""
    items, root = find_listed(used, original.spec.data, reporter=reporter)
    return [dataclasses.replace(item, path=str(root / item.path)) for item in items]


def _new_images(
    original: LoadedRun,
    images: str | Path,
    known: Sequence[Record],
    new: RunSpec,
    reporter: Reporter,
) -> list[Record]:
    """The new images with absolute paths and splits, each once and none of the `known` ones.

    Raises:
        DataError: there is none, or a class has too few to be in every split.
    """
    own = original.spec.data
    columns = {f"data.{field}": getattr(own, field) for field in _COLUMN_FIELDS}
    spec = override(new, {**images_at(images), **columns}).data
    listing = read_records(spec)
    taken = {record.digest for record in known}
    items: list[Record] = []
    for record in listing.items:
        digest = sha256_of(listing.root / record.path)
        if digest not in taken:
            path = str(listing.root / record.path)
            items.append(dataclasses.replace(record, path=path, digest=digest))
        taken.add(digest)
    num_left_out = len(listing.items) - len(items)
    if not items:
        raise DataError(
            "there is no new image",
            expected=f"images below {images} that {original.folder.path} has not used",
            received=counted(num_left_out, "copy of its images", "copies of its images"),
            fix="give other images",
        )
    words = counted(len(items), "new image", "new images")
    left_out = counted(num_left_out, "copy", "copies")
    reporter.info(f"{words}; {left_out} of others or of the run's images left out.")
    task = SingleLabel(tuple(sorted({record.label for record in items})))
    records = Records(tuple(items), task.targets(items), listing.root)
    splits = make_splits(records, spec, seed=new.seed)
    return _with_splits(items, splits)


def _write_listing(records: Sequence[Record], file: Path, *, resume: bool) -> None:
    """Write the CSV file of all images.

    Raises:
        DataError: there is another file of that name, or the images have changed since the run to
            resume was begun.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for one in sorted(records, key=lambda record: record.path):
        cells = (one.path, one.label, one.split, one.group or "")
        writer.writerow([spreadsheet_cell(cell) for cell in cells])
    content = text.getvalue().encode()
    if file.exists() and file.read_bytes() != content:
        raise DataError(
            f"{file} has other images",
            expected="the images with which the run was begun" if resume else "no such file",
            received=f"a file of {file.stat().st_size:,} bytes",
            fix="give the same run and images as before" if resume else "give another --output",
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as path:
        path.write_bytes(content)


def _compare(original: LoadedRun, extended: LoadedRun, reporter: Reporter) -> Extension:
    """Both runs on the test images of the first, and the second on those that were added."""
    first, values, outputs = predict_test(original, reporter, all_needed=True)
    every, all_values, all_outputs = predict_test(extended, reporter, all_needed=True)
    row_of = {record.digest: row for row, record in enumerate(every.items)}
    old = np.array([row_of[record.digest] for record in first.items])
    added = np.setdiff1d(np.arange(len(every.items)), old)
    task = extended.task
    is_new = ~np.isin(task.names, original.class_names)
    scores = original.task.example_scores(values, outputs)
    restricted = np.where(is_new, 0, all_outputs[old])
    gains = [
        paired_gain(scores, task.example_scores(all_values[old], found))
        for found in (all_outputs[old], restricted)
    ]
    return Extension(
        original=original,
        extended=extended,
        before=original.task.headline(values, outputs),
        after=task.headline(all_values[old], all_outputs[old]),
        gain=gains[0],
        gain_among_old=gains[1],
        added=task.headline(all_values[added], all_outputs[added]),
        overall=task.headline(all_values, all_outputs),
        new_classes=tuple(sorted(set(task.names) - set(original.class_names))),
        num_old=len(old),
        num_added=len(added),
    )
