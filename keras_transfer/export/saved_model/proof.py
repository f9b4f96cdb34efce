"""Export with proof: the artefact appears only once it has answered like the model.

The network is written in every way it could be served, all of them answer the test images and
are timed in turns, and the fastest that agrees with the model is kept. The way it was trained is
always among them: whatever is meant to be faster must be, here, in the same minute.

Proof that an exported model is the model: same images in, same answers out.
"""

import dataclasses
import functools
import json
import math
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.errors import ExportError
from keras_transfer.export.card import Card
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model.build import as_trained, frozen
from keras_transfer.export.saved_model.isolated import Answers, cannot_be_served, serve_alone
from keras_transfer.export.saved_model.network import Network
from keras_transfer.export.saved_model.writer import export_saved_model, write_warmup
from keras_transfer.specs import RunSpec
from keras_transfer.storage.atomic import replacing
from keras_transfer.storage.class_names import check_class_order

TOLERANCES: Final = {
    "float32": 1e-5,
    "mixed_bfloat16": 5e-2,
    "mixed_float16": 1e-2,
    "bfloat16": 5e-2,
}
"""Largest accepted |Δ probability| by dtype policy.

A batch of another size takes other kernels, which sum in another order. On ResNet50 and MobileNet,
with logits of standard deviation 4, that alone moved a Keras model's own probabilities by up to
6e-6 in float32, 3e-2 in bfloat16 and 5e-3 in float16: artefact and model cannot be held to less.
"""


def policy_of(model: keras.Model) -> str:
    """The dtype policy that allows its layers least precision; what 'auto' chose is kept there."""
    return max({layer.dtype_policy.name for layer in model.layers}, key=TOLERANCES.__getitem__)


@dataclass(frozen=True)
class Parity:
    """How well artefact and model agree; `label_agreement` is a share, 1.0 when all agree."""

    num_files: int
    label_agreement: float
    max_abs_difference: float


def check_parity(
    export_folder: Path,
    files: Sequence[Path],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    max_megapixels: float,
    tolerance: float = TOLERANCES["float32"],
) -> Parity:
    """Serve files from the artefact and compare with what the model said.

    Labels are compared as names. Where the model's two best classes are closer than twice the
    tolerance, rounding decides between them, so either counts as agreement; an exact tie can
    therefore not fail the check.

    Args:
        probabilities: float32 [N, C], the model's, row by row for `files`.
        class_names: the model's, in the order of the columns.
        tolerance: largest accepted |Δ probability|, from `TOLERANCES`.

    Raises:
        ExportError: the artefact cannot be served without Keras, or differs; names the worst file.
        DataError: a file cannot be read.
    """
    check_comparable(files, probabilities)
    (answers,) = serve_alone([export_folder], files, max_megapixels=max_megapixels)
    return judge_answers(
        export_folder, answers, files, probabilities, class_names, tolerance=tolerance
    )


def check_comparable(files: Sequence[Path], probabilities: np.ndarray) -> None:
    """Raise ExportError unless there is a row of probabilities for each of one or more files."""
    if not len(files) == len(probabilities) > 0:
        raise ExportError(
            "the exported model cannot be compared with the model",
            expected="at least one file, and one row of probabilities for each",
            received=f"{len(files)} files and {len(probabilities)} rows",
            fix="compare on the files of the test split",
        )


def judge_answers(
    export_folder: Path,
    answers: Answers | str,
    files: Sequence[Path],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    tolerance: float,
) -> Parity:
    """Compare what `serve_alone` brought with what the model said; as `check_parity`."""
    _check_names(Contract.read(export_folder).class_names, class_names, where="labels.txt")
    if isinstance(answers, str):
        raise cannot_be_served(export_folder, answers)
    for row in answers.class_names:
        _check_names(row, class_names, where="the output class_names")
    differences = _differences(answers, probabilities)
    agrees = _labels_agree(answers.label, probabilities, class_names, margin=2 * tolerance)
    parity = Parity(len(files), float(agrees.mean()), float(differences.max()))
    # Written so that NaN fails.
    if not (agrees.all() and parity.max_abs_difference <= tolerance):
        worst = int(np.argmax(np.where(agrees, differences, np.inf)))
        top = class_names[int(probabilities[worst].argmax())]
        raise ExportError(
            f"the exported model and the model disagree, most of all on {files[worst]}",
            expected=f"equal labels, and probabilities within {tolerance:g}",
            received=f"{answers.label[worst]!r} for the model's {top!r}; over {len(files)} files "
            f"{parity.label_agreement:.2%} of the labels agree and probabilities differ by up to "
            f"{parity.max_abs_difference:.2g}",
            fix="do not deploy this export: export again from the run's model.keras",
        )
    _check_consistent(export_folder, answers)
    return parity


def _check_names(found: Sequence[str], class_names: Sequence[str], *, where: str) -> None:
    if list(found) != list(class_names):
        raise ExportError(
            f"{where} of the exported model lists other classes than the model",
            expected=", ".join(list(class_names)[:10]),
            received=", ".join(list(found)[:10]),
            fix="export again with the class list of the run",
        )


def _check_consistent(export_folder: Path, answers: Answers) -> None:
    """The best classes must be those of the probabilities, and heat maps within 0-1."""
    best = np.sort(answers.probabilities, axis=1)[:, ::-1][:, : answers.top_probabilities.shape[1]]
    wrong = []
    if not np.array_equal(best, answers.top_probabilities):
        wrong.append("top_probabilities are not the highest ones")
    if not np.array_equal(answers.top_class_names[:, 0], answers.label):
        wrong.append("top_class_names do not begin with the label")
    # Written so that NaN fails.
    if not bool(np.all((answers.heat_map >= 0) & (answers.heat_map <= 1))):
        wrong.append("heat maps leave the range of 0-1")
    if wrong:
        raise ExportError(
            f"the outputs of {export_folder} contradict each other",
            expected="the same answer in every output",
            received="; ".join(wrong),
            fix="do not deploy this export: export again from the run's model.keras",
        )


def _differences(answers: Answers, probabilities: np.ndarray) -> np.ndarray:
    """Largest |Δ probability| of each file, over all signatures."""
    differences = np.abs(answers.probabilities - probabilities).max(axis=1)
    for few in (answers.pixel_probabilities, answers.square_probabilities):
        other = np.abs(few - probabilities[: len(few)]).max(axis=1)
        differences[: len(few)] = np.maximum(differences[: len(few)], other)
    return differences


def _labels_agree(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], *, margin: float
) -> np.ndarray:
    column = {name: number for number, name in enumerate(class_names)}
    rows = np.arange(len(labels))
    chosen = probabilities[rows, [column[label] for label in labels]]
    agrees: np.ndarray = probabilities.max(axis=1) - chosen <= margin
    return agrees


MAX_FILES: Final = 256
"""Test images on which artefact and model are compared, spread evenly; more prove no more."""

PROOF_FILE: Final = "proof.json"
"""Beside the artefact: what `Proof.to_dict` says."""

AS_TRAINED: Final = "as trained"
FROZEN: Final = "folded and frozen"
FOLDED: Final = "folded"
"""What Keras's JAX backend makes of the same: its weights stay in variables."""

_NOISE: Final = 0.97
"""What a way must take of another's time to count as faster."""


@dataclass(frozen=True)
class Way:
    """One way to serve the network, and what became of it.

    `milliseconds` are medians by batch size, on this machine; `parity` is None where it failed,
    and `refusal` then says why.
    """

    name: str
    precision: str
    milliseconds: dict[int, float]
    parity: Parity | None
    refusal: str = ""


@dataclass(frozen=True)
class Proof:
    """The way that was kept, how well it agrees with the model, and all ways that were tried.

    `backend` is the one of Keras's that wrote the artefact: 'tensorflow', or 'jax' for XLA's.
    """

    kept: Way
    ways: tuple[Way, ...]
    backend: str

    @property
    def parity(self) -> Parity:
        assert self.kept.parity is not None
        return self.kept.parity

    def to_dict(self) -> dict[str, Any]:
        """The content of proof.json."""
        return asdict(self.parity) | {
            "way": self.kept.name,
            "precision": self.kept.precision,
            "backend": self.backend,
            "ways": [asdict(way) for way in self.ways],
        }


def export_proven(
    model: keras.Model,
    folder: Path,
    *,
    spec: RunSpec,
    class_names: Sequence[str],
    files: Sequence[Path],
    probabilities: np.ndarray,
    card: Card | None = None,
) -> Proof:
    """Write the SavedModel, compare it with the model on test files, and only then let it appear.

    Args:
        folder: its last part is the version, such as export/1; an earlier export is replaced.
        files: the test split's.
        probabilities: float32 [N, C], the model's, row by row for `files`.
        card: written beside the artefact, with its version and precision.

    Raises:
        ExportError: the artefact cannot be served by TensorFlow alone, or does not agree.
        DataError: the model was trained on other classes or in another order.
        RunError: the disk is full, or the folder cannot be written.
    """
    check_class_order(model.name, class_names, "the export")
    check_comparable(files, probabilities)
    last = len(files) - 1
    rows = np.unique(np.linspace(0, last, min(MAX_FILES, len(files))).round().astype(int))
    chosen = [files[row] for row in rows]
    contract = Contract.of(spec, tuple(class_names))
    ways = _ways(model, spec.export.precision)

    def evaluate_test(folder: Path, answers: Answers | str, precision: str) -> Parity:
        tolerance = max(TOLERANCES[policy_of(model)], TOLERANCES[precision])
        return judge_answers(
            folder, answers, chosen, probabilities[rows], class_names, tolerance=tolerance
        )

    with replacing(folder) as path:
        folders = [path / f"way-{number}" for number in range(len(ways))]
        for (_, precision, network), way_folder in zip(ways, folders, strict=True):
            terms = dataclasses.replace(contract, precision=precision)
            export_saved_model(network(), way_folder, terms)
        answers = serve_alone(folders, chosen, max_megapixels=contract.max_megapixels)
        tried = [
            _try(name, precision, answer, functools.partial(evaluate_test, at, answer, precision))
            for (name, precision, _), at, answer in zip(ways, folders, answers, strict=True)
        ]
        kept = _fastest(tried)
        if kept is None:
            evaluate_test(folders[0], answers[0], "float32")  # raises what is wrong
        assert kept is not None
        proof = Proof(kept, tuple(tried), keras.backend.backend())
        _keep(path, folders, folders[tried.index(kept)])
        content = json.dumps(proof.to_dict(), indent=2) + "\n"
        (path / PROOF_FILE).write_text(content, encoding="utf-8")
        write_warmup(path, chosen, contract)
        if card is not None:
            version = int(folder.name)
            dataclasses.replace(card, version=version, precision=kept.precision).write(path)
    return proof


def _ways(model: keras.Model, precision: str) -> list[tuple[str, str, Callable[[], Network]]]:
    """Name, precision and maker of every way; the way it was trained comes first."""
    precisions = dict.fromkeys(["float32", precision])
    name = FOLDED if keras.backend.backend() == "jax" else FROZEN
    return [
        (AS_TRAINED, "float32", lambda: as_trained(model)),
        *((name, each, functools.partial(frozen, model, precision=each)) for each in precisions),
    ]


def _try(
    name: str, precision: str, answers: Answers | str, evaluate_test: Callable[[], Parity]
) -> Way:
    seconds = answers.seconds if isinstance(answers, Answers) else {}
    milliseconds = {size: 1e3 * statistics.median(rounds) for size, rounds in seconds.items()}
    try:
        return Way(name, precision, milliseconds, evaluate_test())
    except ExportError as error:
        return Way(name, precision, milliseconds, None, str(error))


def _fastest(ways: Sequence[Way]) -> Way | None:
    """The one that takes least of the trained one's time; None unless that one agrees itself."""
    trained = ways[0]
    if trained.parity is None:
        return None

    def share(way: Way) -> float:
        ratios = [way.milliseconds[size] / trained.milliseconds[size] for size in way.milliseconds]
        return float(math.prod(ratios) ** (1 / len(ratios)))

    best = min((way for way in ways if way.parity), key=share)
    return best if share(best) < _NOISE else trained


def _keep(path: Path, folders: Sequence[Path], kept: Path) -> None:
    """Move what was kept up into its place, and drop the rest."""
    for entry in kept.iterdir():
        entry.rename(path / entry.name)
    for folder in folders:
        shutil.rmtree(folder)
