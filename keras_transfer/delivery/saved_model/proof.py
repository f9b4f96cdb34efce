"""Export with proof: the artefact appears only once it has answered like the model.

The network is written in every way it could be served, all of them answer the test pictures and
are timed in turns, and the fastest that agrees with the model is kept. The way it was trained is
always among them: whatever is meant to be faster must be, here, in the same minute.
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

from keras_transfer.delivery.atomic import replacing
from keras_transfer.delivery.card import Card
from keras_transfer.delivery.contract import Contract
from keras_transfer.delivery.saved_model.export import export_saved_model
from keras_transfer.delivery.saved_model.network import Network, as_trained, frozen
from keras_transfer.delivery.saved_model.parity import (
    TOLERANCES,
    Parity,
    check_comparable,
    judge_answers,
    policy_of,
)
from keras_transfer.delivery.saved_model.served_alone import Answers, serve_alone
from keras_transfer.delivery.saved_model.warmup import write_warmup
from keras_transfer.errors import ExportError
from keras_transfer.labels import check_class_order
from keras_transfer.specs import RunSpec

MAX_FILES: Final = 256
"""Test pictures on which artefact and model are compared, spread evenly; more prove no more."""

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

    def judge(folder: Path, answers: Answers | str, precision: str) -> Parity:
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
            _try(name, precision, answer, functools.partial(judge, at, answer, precision))
            for (name, precision, _), at, answer in zip(ways, folders, answers, strict=True)
        ]
        kept = _fastest(tried)
        if kept is None:
            judge(folders[0], answers[0], "float32")  # raises what is wrong
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


def _try(name: str, precision: str, answers: Answers | str, judge: Callable[[], Parity]) -> Way:
    seconds = answers.seconds if isinstance(answers, Answers) else {}
    milliseconds = {size: 1e3 * statistics.median(rounds) for size, rounds in seconds.items()}
    try:
        return Way(name, precision, milliseconds, judge())
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
