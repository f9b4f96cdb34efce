"""Proof that an exported model is the model: same pictures in, same answers out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import keras
import numpy as np

from keras_transfer.delivery.contract import Contract
from keras_transfer.delivery.saved_model.served_alone import Answers, cannot_be_served, serve_alone
from keras_transfer.errors import ExportError

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
