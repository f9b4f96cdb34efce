"""Compares the networks of a chain of compressions, and their formats, on the same test images."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from keras_transfer.config import override
from keras_transfer.data.records import Record
from keras_transfer.data.splits import read_manifest
from keras_transfer.errors import DataError, ExportError, KerasTransferError, RunError
from keras_transfer.evaluation.results import Gain, paired_gain
from keras_transfer.experiments.evaluation import predict_test
from keras_transfer.experiments.sparsity import packed_bytes
from keras_transfer.experiments.speed import Speed, make_call, measure_calls
from keras_transfer.export.conversion import read_split
from keras_transfer.export.formats.registry import FORMATS, files_of
from keras_transfer.export.formats.runtimes import Runtime, open_runtime
from keras_transfer.export.kept_images import find_or_kept
from keras_transfer.inference.prediction import LoadedRun, load_run
from keras_transfer.models.cuts import Cut
from keras_transfer.models.forward import BATCH_SIZE
from keras_transfer.reporting.reporter import Reporter, SilentReporter
from keras_transfer.storage.run_folder import RunFolder, version_folders

REPORT_FILE: Final = "compression.json"
"""Written last: it marks a compression as complete."""
MADE_OF: Final = "made_of"
"""In that file: the path of the run that was compressed, relative to the folder."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A network, or another form of it, with its outputs [N, K] on the test split.

    `file` is the run's model.keras, or that of the form, whose name is `form`.
    """

    name: str
    run: LoadedRun
    file: Path
    outputs: np.ndarray
    speed: Speed
    form: str = ""

    @property
    def num_parameters(self) -> int:
        """Weights of all layers."""
        return int(self.run.model.count_params())

    @property
    def num_bytes(self) -> int:
        """Size of the files, which have the weights as they are."""
        return sum(file.stat().st_size for file in files_of(self.file))

    @cached_property
    def num_packed_bytes(self) -> int:
        """Size of the files after gzip, which repeated weights and zeros make smaller."""
        return sum(packed_bytes(file) for file in files_of(self.file))


@dataclass(frozen=True, eq=False)
class Compression:
    """All networks on the same test images with their true values.

    `contenders` are the networks of the chain in their order, then the forms. `gain` is the paired
    change from the first network of the chain to the last.
    """

    contenders: tuple[Contender, ...]
    values: np.ndarray
    gain: Gain

    @property
    def chain(self) -> list[Contender]:
        """The networks, each made of the one before."""
        return [one for one in self.contenders if not one.form]

    @property
    def original(self) -> Contender:
        """The first network."""
        return self.chain[0]

    @property
    def compressed(self) -> Contender:
        """The last network."""
        return self.chain[-1]


def ancestors(run: LoadedRun, reporter: Reporter) -> list[LoadedRun]:
    """The runs that a compressed run was made of, the first one first; none for other runs.

    Their images are looked for where those of `run` are. A run that cannot be compared, because it
    is damaged, unfinished or has been moved, is left out, and the reporter says which and why.
    """
    found: list[LoadedRun] = []
    folder = _made_of(run.folder, reporter)
    while folder:
        try:
            found.insert(0, _comparable(folder, run))
        except KerasTransferError as error:
            reporter.info(
                f"{folder.path}, of which {run.folder.path} was made, is left out of the "
                f"comparison: {error.what} ({error.received})."
            )
        folder = _made_of(folder, reporter)
    return found


def _made_of(folder: RunFolder, reporter: Reporter) -> RunFolder | None:
    """The run that another one was made of; None if that is no compression, or cannot be read."""
    if not (folder.path / REPORT_FILE).is_file():
        return None
    try:
        made_of = folder.read_json(REPORT_FILE).get(MADE_OF)
    except RunError as error:
        reporter.info(f"What {folder.path} was made of is left out: {error.what}.")
        return None
    return RunFolder((folder.path / made_of).resolve()) if made_of else None


def _comparable(folder: RunFolder, run: LoadedRun) -> LoadedRun:
    """The run of a folder, whose test images are there and those of `run`."""
    found = load_run(folder.path)
    found = dataclasses.replace(found, spec=override(found.spec, {"data.path": run.spec.data.path}))
    own, others = _listed(found), _listed(run)
    _check_images([others, own])
    find_or_kept(own, found, split="test", all_needed=True, reporter=SilentReporter())
    return found


def _listed(run: LoadedRun) -> list[Record]:
    """The test images of a run, which may be missing now."""
    records, splits = read_manifest(run.folder.read_json("splits.json"))
    return [records[row] for row in splits.test]


def compare(chain: Sequence[LoadedRun], *, reporter: Reporter) -> Compression:
    """Evaluate runs, and their verified forms, on the same test images, and time them in turns.

    Raises:
        DataError: they have other test images.
    """
    reporter.info("Comparing with the original network …")
    names = _names(chain)
    with reporter.progress("predicting the test images"):
        tested = [predict_test(run, SilentReporter(), all_needed=True) for run in chain]
    _check_images([records.items for records, _, _ in tested])
    forms = [
        (f"{name}, {form}", run, form, runtime)
        for name, run in zip(names, chain, strict=True)
        for form, runtime in _forms_of(run, reporter)
    ]
    calls = [functools.partial(make_call, [Cut(run.model, run.model.output, "")]) for run in chain]
    with reporter.progress("timing the networks"):
        speeds = measure_calls([*calls, *(functools.partial(_call, form[-1]) for form in forms)])
    networks = [
        Contender(name, run, run.folder.model_file, outputs, speed)
        for name, run, (_, _, outputs), speed in zip(names, chain, tested, speeds, strict=False)
    ]
    values, task = tested[0][1], chain[0].task
    scores = [task.example_scores(values, networks[place].outputs) for place in (0, -1)]
    others = [
        Contender(name, run, runtime.path, _predict(runtime, run, len(values)), speed, form)
        for (name, run, form, runtime), speed in zip(forms, speeds[len(chain) :], strict=True)
    ]
    return Compression((*networks, *others), values, paired_gain(*scores))


def _check_images(tested: Sequence[Sequence[Record]]) -> None:
    digests = [[record.digest for record in records] for records in tested]
    if any(own != digests[0] for own in digests):
        raise DataError(
            "the runs have other test images",
            expected="the same images, seed and data fields as in the original run",
            received=", ".join(f"{len(own)} test images" for own in digests),
            fix="leave out fields of data, and seed",
        )


def _names(chain: Sequence[LoadedRun]) -> list[str]:
    return ["original", *(run.folder.path.name for run in chain[1:-1]), "compressed"]


def _forms_of(run: LoadedRun, reporter: Reporter) -> Iterator[tuple[str, Runtime]]:
    """The formats of the newest version that has some; refused ones have no file."""
    versions = version_folders(run.folder.path / "formats")
    if not versions:
        return
    for name, entry in FORMATS.items():
        file = versions[max(versions)] / entry.file
        if not file.is_file() or entry.kind.gives_logits:
            continue
        try:
            yield name, open_runtime(file)
        except ExportError as error:  # Such as a library that is not installed here.
            reporter.info(f"{file} is left out: {error.received}")


def _call(runtime: Runtime, size: int) -> functools.partial[np.ndarray]:
    shape = (size, *runtime.contract.input_shape)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return functools.partial(runtime, pixels)


def _predict(runtime: Runtime, run: LoadedRun, num_images: int) -> np.ndarray:
    """Outputs of all test images, [N, K]."""
    pixels = read_split(run, "test", num_images, reporter=SilentReporter()).pixels
    starts = range(0, num_images, BATCH_SIZE)
    return np.concatenate([runtime(pixels[start : start + BATCH_SIZE]) for start in starts])
