"""Exports a verified SavedModel: its folder appears only if its outputs equal the model's.

The network is written in several variants. All of them run the test images in a process without
Keras and are timed there in turns; the fastest that agrees with the model is kept. The unchanged
trained network is always one of them, so another variant is kept only if it is faster on this
machine.
"""

import dataclasses
import functools
import json
import math
import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.data.records import counted
from keras_transfer.errors import ExportError
from keras_transfer.export.card import Card
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats.registry import SAVED_MODEL, files_of
from keras_transfer.export.saved_model.network import Network, as_trained, frozen
from keras_transfer.export.saved_model.writer import export_saved_model, write_warmup
from keras_transfer.export.verification import (
    IsolatedArtefact,
    IsolatedProcess,
    Timing,
    time_in_turns,
    write_images,
)
from keras_transfer.reporting.reporter import Reporter, SilentReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.atomic import replacing
from keras_transfer.storage.checksums import write_checksums
from keras_transfer.storage.class_names import check_class_order
from keras_transfer.tasks.task import Task

TOLERANCES: Final = {
    "float32": 1e-5,
    "mixed_bfloat16": 5e-2,
    "mixed_float16": 1e-2,
    "bfloat16": 5e-2,
}
"""Largest accepted |Δ output| by dtype policy, in units of the task's `output_scale`.

Batches of another size use other kernels, which sum in another order. On ResNet50 and MobileNet,
with logits of standard deviation 4, that alone moved a Keras model's own probabilities by up to
6e-6 in float32, 3e-2 in bfloat16 and 5e-3 in float16: so a smaller limit would reject correct
exports.
"""

MAX_FILES: Final = 256
"""Test images of the comparison, spread evenly; more would not make the check stronger."""

PROOF_FILE: Final = "proof.json"
"""Next to the SavedModel: the content of `Proof.to_dict`."""

AS_TRAINED: Final = "as trained"
FROZEN: Final = "folded and frozen"
FOLDED: Final = "folded"
"""The same on Keras's JAX backend, where weights stay in variables."""

NOISE: Final = 0.97
"""Share of another variant's time that a variant must stay below to count as faster."""

_TIMING: Final = Timing(calls={1: 1, 8: 1}, least_rounds=3, most_rounds=15, seconds=4.0)


def policy_of(model: keras.Model) -> str:
    """The least precise dtype policy of the model's layers; 'auto' has been resolved there."""
    return max({layer.dtype_policy.name for layer in model.layers}, key=TOLERANCES.__getitem__)


@dataclass(frozen=True)
class Parity:
    """How well export and model agree; `label_agreement` is a share, 1.0 when all agree.

    `refused` counts files that serving_default refuses, by reason; of these the conversion to PNG
    was compared, of all others the file itself.
    """

    num_files: int
    label_agreement: float
    max_abs_difference: float
    refused: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """A variant of the network with its agreement and latencies.

    `milliseconds` are medians by batch size, on this machine; `parity` is None if it failed;
    `refusal` is then the reason.
    """

    name: str
    precision: str
    milliseconds: dict[int, float]
    parity: Parity | None
    refusal: str = ""


@dataclass(frozen=True)
class Proof:
    """The variant that was kept, its agreement with the model, and all variants that were tried.

    `backend` is the Keras backend that wrote the SavedModel: 'tensorflow', or 'jax' for programs
    of XLA.
    """

    kept: Variant
    variants: tuple[Variant, ...]
    backend: str

    @property
    def parity(self) -> Parity:
        assert self.kept.parity is not None
        return self.kept.parity

    def to_dict(self) -> dict[str, Any]:
        """The content of proof.json."""
        return asdict(self.parity) | {
            "variant": self.kept.name,
            "precision": self.kept.precision,
            "backend": self.backend,
            "variants": [asdict(variant) for variant in self.variants],
        }


@dataclass(frozen=True, eq=False)
class _Reference:
    """The reference for exports: the model's outputs [N, K] for `files`."""

    files: Sequence[Path]
    outputs: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.files) == len(self.outputs) > 0:
            raise ExportError(
                "the exported model cannot be compared with the model",
                expected="at least one file, and one row of outputs for each",
                received=f"{len(self.files)} files and {len(self.outputs)} rows",
                fix="compare on the files of the test split",
            )

    def spread(self, count: int) -> "_Reference":
        """At most `count` files, spread evenly."""
        last = len(self.files) - 1
        rows = np.unique(np.linspace(0, last, min(count, last + 1)).round().astype(int))
        return dataclasses.replace(
            self, files=[self.files[row] for row in rows], outputs=self.outputs[rows]
        )


def check_parity(
    export_folder: Path,
    files: Sequence[Path],
    outputs: np.ndarray,
    class_names: Sequence[str],
    *,
    max_megapixels: float,
    tolerance: float = TOLERANCES["float32"],
) -> Parity:
    """Compare a SavedModel, run without Keras, with the model's own outputs.

    If two decisions of the model differ by less than twice the tolerance, rounding decides between
    them, so both count as equal; an exact tie cannot fail the check.

    Args:
        outputs: the model's outputs for `files`, float32 [N, K].
        class_names: the model's class names, in the order of the columns.
        tolerance: largest accepted |Δ output|, from `TOLERANCES`.

    Raises:
        ExportError: the SavedModel does not run without Keras, or its outputs differ; the message
            has the worst file.
        DataError: a file cannot be read.
    """
    reference = _Reference(files, outputs, tuple(class_names))
    contract = Contract.read(export_folder)
    with tempfile.TemporaryDirectory() as scratch, IsolatedProcess(SAVED_MODEL) as process:
        images = Path(scratch, "images.bin")
        write_images(files, images, max_megapixels=max_megapixels)
        _check_class_names(export_folder, contract, reference)
        served = process.open(export_folder, input_shape=contract.input_shape).serve(images)
    return _compare(contract.restored_task, served, reference, tolerance=tolerance)


def export_proven(
    model: keras.Model,
    folder: Path,
    *,
    spec: RunSpec,
    task: Task,
    files: Sequence[Path],
    outputs: np.ndarray,
    card: Card | None = None,
    reporter: Reporter | None = None,
) -> Proof:
    """Write a SavedModel, compare it with the model on test files, and keep it if it agrees.

    Args:
        folder: its last part is the version, such as export/1; an earlier export is replaced.
        task: the model's task after training.
        files: images of the test split.
        outputs: the model's outputs for `files`, float32 [N, K].
        card: written next to the SavedModel, with its version and precision.
        reporter: shows what is done, which can take a minute; by default nothing.

    Raises:
        ExportError: the SavedModel does not run without Keras, or its outputs differ.
        DataError: the model was trained on other classes or in another order, or a file cannot be
            read.
        RunError: the disk is full, or the folder cannot be written.
    """
    check_class_order(model.name, task.names, "the export")
    reporter = reporter or SilentReporter()
    reference = _Reference(files, outputs, task.names).spread(MAX_FILES)
    contract = Contract.of(spec, task)
    candidates = _candidates(model, spec.export.precision)
    reporter.info(
        f"Export: {len(candidates)} forms of the network are written, predict "
        f"{counted(len(reference.files), 'test file', 'test files')} in a process without Keras, "
        "and are timed."
    )
    with replacing(folder) as path:
        folders = [path / f"variant-{number}" for number in range(len(candidates))]
        _write(candidates, folders, contract, reporter)
        variants = _try(
            candidates, folders, contract, reference, policy_of(model), reporter=reporter
        )
        kept = _fastest(variants)
        proof = Proof(kept, tuple(variants), keras.backend.backend())
        _keep(path, folders, folders[variants.index(kept)])
        write_warmup(path, reference.files, contract)
        write_checksums(path, [file.relative_to(path).as_posix() for file in files_of(path)])
        content = json.dumps(proof.to_dict(), indent=2) + "\n"
        (path / PROOF_FILE).write_text(content, encoding="utf-8")
        if card is not None:
            limits = [*card.limits, *describe_refused(proof.parity)]
            written = dataclasses.replace(
                card, version=int(folder.name), precision=kept.precision, limits=limits
            )
            written.write(path)
    return proof


def describe_refused(parity: Parity) -> Iterator[str]:
    """A sentence on test files that the SavedModel refuses."""
    if parity.refused:
        kinds = ", ".join(f"{count} × {reason}" for reason, count in parity.refused.items())
        yield (
            f"Of {parity.num_files} test files of the verification, serving_default refuses "
            f"{sum(parity.refused.values())} as they are ({kinds}); `predict` and "
            "`pipelines.serve` convert such files to PNG."
        )


@dataclass(frozen=True, eq=False)
class _Candidate:
    name: str
    precision: str
    network: Callable[[], Network]


def _candidates(model: keras.Model, precision: str) -> list[_Candidate]:
    """Every variant that is tried; the unchanged trained network is the first."""
    name = FOLDED if keras.backend.backend() == "jax" else FROZEN
    return [
        _Candidate(AS_TRAINED, "float32", functools.partial(as_trained, model)),
        *(
            _Candidate(name, each, functools.partial(frozen, model, precision=each))
            for each in dict.fromkeys(["float32", precision])
        ),
    ]


def _write(
    candidates: Sequence[_Candidate],
    folders: Sequence[Path],
    contract: Contract,
    reporter: Reporter,
) -> None:
    with reporter.progress("writing the export") as count:
        for number, (candidate, at) in enumerate(zip(candidates, folders, strict=True)):
            count(number, len(candidates))
            terms = dataclasses.replace(contract, precision=candidate.precision)
            export_saved_model(candidate.network(), at, terms)


def _try(
    candidates: Sequence[_Candidate],
    folders: Sequence[Path],
    contract: Contract,
    reference: _Reference,
    policy: str,
    *,
    reporter: Reporter,
) -> list[Variant]:
    """Compare all candidates with the model, and time those that run, in one process.

    Raises:
        ExportError: the first one, the unchanged trained network, disagrees.
    """
    parities: list[Parity | ExportError] = []
    timed: dict[str, IsolatedArtefact] = {}
    with tempfile.TemporaryDirectory() as scratch, IsolatedProcess(SAVED_MODEL) as process:
        images = Path(scratch, "images.bin")
        write_images(reference.files, images, max_megapixels=contract.max_megapixels)
        with reporter.progress("verifying the export") as count:
            for candidate, at in zip(candidates, folders, strict=True):
                count(len(parities), len(candidates))
                tolerance = max(TOLERANCES[policy], TOLERANCES[candidate.precision])
                try:
                    artefact = process.open(at, input_shape=contract.input_shape)
                    served = artefact.serve(images)
                    timed[at.name] = artefact
                    parities.append(
                        _compare(contract.restored_task, served, reference, tolerance=tolerance)
                    )
                except ExportError as error:
                    if candidate is candidates[0]:
                        raise
                    parities.append(error)
        seconds = time_in_turns(timed, _TIMING, reporter=reporter)
    return [
        Variant(
            candidate.name,
            candidate.precision,
            {size: 1e3 * statistics.median(s) for size, s in seconds.get(at.name, {}).items()},
            None if isinstance(parity, ExportError) else parity,
            str(parity) if isinstance(parity, ExportError) else "",
        )
        for candidate, at, parity in zip(candidates, folders, parities, strict=True)
    ]


def _check_class_names(folder: Path, contract: Contract, reference: _Reference) -> None:
    if contract.class_names != reference.class_names:
        raise ExportError(
            f"labels.txt in {folder} lists other classes than the model",
            expected=", ".join(reference.class_names[:10]),
            received=", ".join(contract.class_names[:10]),
            fix="export again with the class list of the run",
        )


def _compare(
    task: Task,
    served: Mapping[str, np.ndarray],
    reference: _Reference,
    *,
    tolerance: float,
) -> Parity:
    """Compare a SavedModel's outputs with the model's; see `check_parity`."""
    outputs = served[task.output_name]
    differences = _differences(task, served, outputs, reference.outputs)
    agrees = task.agrees(outputs, reference.outputs, margin=2 * tolerance)
    refused = Counter(reason for reason in served["refusals"].tolist() if reason)
    parity = Parity(
        len(reference.files), float(agrees.mean()), float(differences.max()), dict(refused)
    )
    # Written so that NaN fails.
    if not (agrees.all() and parity.max_abs_difference <= tolerance):
        worst = int(np.argmax(np.where(agrees, differences, np.inf)))
        found, expected = (
            ", ".join(task.decided(rows[worst])) or rows[worst].tolist()
            for rows in (outputs, reference.outputs)
        )
        raise ExportError(
            f"the exported model and the model disagree, most on {reference.files[worst]}",
            expected=f"equal decisions, and outputs within {tolerance:g}",
            received=f"{found!r} for the model's {expected!r}; over {parity.num_files} files "
            f"{parity.label_agreement:.2%} agree and outputs differ by up to "
            f"{parity.max_abs_difference:.2g}",
            fix="do not deploy this export: export again from the run's model.keras",
        )
    wrong = task.contradictions(served)
    if not bool(np.all((served["heat_map"] >= 0) & (served["heat_map"] <= 1))):
        wrong.append("heat maps outside the range 0-1")
    if wrong:
        raise ExportError(
            "the outputs of the exported model are inconsistent",
            expected="consistent outputs",
            received="; ".join(wrong),
            fix="do not deploy this export: export again from the run's model.keras",
        )
    return parity


def _differences(
    task: Task, served: Mapping[str, np.ndarray], outputs: np.ndarray, expected: np.ndarray
) -> np.ndarray:
    """Largest |Δ output| of each file, over all signatures, in units of the outputs' scale."""
    differences: np.ndarray = (np.abs(outputs - expected) / task.output_scale).max(axis=1)
    for few in (served["pixel_outputs"], served["square_outputs"]):
        other = (np.abs(few - expected[: len(few)]) / task.output_scale).max(axis=1)
        differences[: len(few)] = np.maximum(differences[: len(few)], other)
    return differences


def _fastest(variants: Sequence[Variant]) -> Variant:
    """The variant with the smallest share of the first one's time, if it is clearly faster."""
    trained = variants[0]

    def share(variant: Variant) -> float:
        ratios = [
            milliseconds / trained.milliseconds[size]
            for size, milliseconds in variant.milliseconds.items()
        ]
        return float(math.prod(ratios) ** (1 / len(ratios)))

    best = min((variant for variant in variants if variant.parity), key=share)
    return best if share(best) < NOISE else trained


def _keep(path: Path, folders: Sequence[Path], kept: Path) -> None:
    """Move the content of the folder `kept` up to `path`, and remove the folders."""
    for entry in kept.iterdir():
        entry.rename(path / entry.name)
    for folder in folders:
        shutil.rmtree(folder)
